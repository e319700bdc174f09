"""Throughput of `convoy predict`, compared with only decoding and onnxruntime.

The peer loads the model, decodes all photographs in one thread per core, and then predicts them in batches on all
cores. It checks no file, prints nothing and writes nothing.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession

from benchmarks.made_photos import OPTIONS, photo_folder
from benchmarks.report import Report, measure_in_turn, medians, rate, ratio, run
from benchmarks.serve_models import export_model
from core.machine import num_cores
from models.exported.manifest import MODEL_FILE
from pipelines.commands.predict import BATCH, find_images, predict_files
from serving.endpoint.classifier import Classifier

NETWORKS = {"AlexNet": ("alexnet", 224), "EfficientNet-Lite0": ("efficientnet_lite0", 160)}
"""The network of the endpoint's benchmark, and the network for fine-tuning on photographs."""


def measure(arguments: argparse.Namespace) -> Report:
    """Classify the same photographs with both candidates, in turn."""
    report = Report("predict")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        photos = find_images([photo_folder(arguments.folder, scratch / "photos", arguments.images)])
        files = photos[: arguments.images]
        for title, (network, size) in NETWORKS.items():
            model = export_model(network, scratch / network, size, size)
            _compare(report, title, model, files, arguments.rounds)
    return report


def _compare(report: Report, title: str, model: Path, files: Sequence[Path], rounds: int) -> None:
    classifier, decoding = Classifier(model), []

    def by_convoy() -> int:
        predict_files(model, files, 5, as_json=False, table=model / "answers.csv")
        return len(files)

    def by_onnxruntime() -> int:
        started = time.perf_counter()
        with ThreadPoolExecutor(num_cores()) as pool:
            images = list(pool.map(lambda file: classifier.decode(file.read_bytes()), files))
        decoding.append(time.perf_counter() - started)
        session = InferenceSession(model / MODEL_FILE, providers=["CPUExecutionProvider"])
        for first in range(0, len(images), BATCH):
            session.run(None, {"image": np.stack(images[first : first + BATCH])})
        return len(images)

    figures = measure_in_turn({title: lambda: rate(by_convoy), "onnxruntime": lambda: rate(by_onnxruntime)}, rounds)
    rates, decoded = medians(figures), len(files) / float(np.median(decoding[1:]))
    report.add(f"convoy predict, {title}", rates[title], "images/s")
    report.add(f"onnxruntime with decoding, {title}", rates["onnxruntime"], "images/s")
    reference = f"{len(files):,} photographs; each loads the model; decoding alone {decoded:,.0f} images/s"
    report.add(f"convoy predict / onnxruntime, {title}", ratio(*figures.values()), "x", goal=0.8, reference=reference)


if __name__ == "__main__":
    run(measure, [OPTIONS[0], ("--images", {"type": int, "default": 1000, "help": "number of photographs"})])
