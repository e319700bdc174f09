"""Item 5: the `gpu` target's predictor alone, from pixels in memory to probabilities in memory."""

import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from benchmarks.gpu.device import free_memory
from benchmarks.gpu.record import Record
from benchmarks.gpu.shards import Shape, make_job, make_prepared
from benchmarks.made_photos import make_photo
from core.files import file_sha256
from core.machine import num_cores
from data.images.decode import Preprocessing, decode
from models.exported.export import ServedNetwork, export_program, make_golden, preprocessing_of
from models.exported.manifest import ModelManifest
from models.exported.predictor import MANIFEST_FILE
from models.exported.torch_program import ProgramPredictor
from models.training.train import build_classifier

DECODED = "JPEG decoding, all cores of the host"


def measure(record: Record) -> None:
    """Latency and images per second for each batch, with CUDA graphs and without; and what the host can decode."""
    batches = record.size.serving_batches
    ways = {"": True, ", no graphs": False} if record.device.type == "cuda" else {"": False}
    wanted = [f"serving{way}, batch {batch}{unit}" for way in ways for batch in batches for unit in ("", " rate")]
    if record.needs(*wanted):
        with tempfile.TemporaryDirectory() as scratch:
            crop = _export(record, Path(scratch))
            for way, graphs in ways.items():
                predictor = ProgramPredictor(Path(scratch), device=record.device.type, cuda_graphs=graphs)
                for batch in batches:
                    _measure_batch(record, predictor, f"serving{way}, batch {batch}", batch, crop)
        free_memory(record.device)
    if record.needs(DECODED):
        _measure_decoding(record)


def _export(record: Record, folder: Path) -> int:
    """Export AlexNet with the weights of seed 0: how long it takes does not depend on what it has learnt."""
    torch.manual_seed(0)
    crop = record.size.pixels
    num_classes = 1000 if record.size.compiled else 10
    job = make_job(make_prepared(folder / "prepared", Shape(2, 2, crop, num_classes)), crop, torch.device("cpu"), {})
    served = ServedNetwork(build_classifier(job)).eval()
    program = export_program(served, crop, folder)
    preprocessing = preprocessing_of(job.manifest, crop)
    manifest = ModelManifest(
        name="alexnet", version="1", network="alexnet", classes=job.manifest.classes, preprocessing=preprocessing,
        preprocessing_hash=preprocessing.hash, run_id="", data_version="", git_commit=None, metrics={}, onnx_sha256="",
        program_sha256=file_sha256(program),
        golden=make_golden(np.zeros((crop, crop, 3), np.uint8), np.zeros(num_classes, np.float32)),
    )  # fmt: skip
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(), encoding="utf-8")
    return crop


def _measure_batch(record: Record, predictor: ProgramPredictor, metric: str, batch: int, crop: int) -> None:
    if not record.needs(metric, f"{metric} rate"):
        return
    images = np.random.default_rng(0).integers(0, 256, (batch, crop, crop, 3), dtype=np.uint8)
    times = []
    started = perf_counter()
    for number in range(10_000):
        start = perf_counter()
        predictor(images)  # returns when the answer is in the host's memory
        if number >= record.size.timing.warm_ups:
            times.append(perf_counter() - start)
        if len(times) >= 2 and perf_counter() - started > record.size.timing.seconds:
            break
    last = np.percentile(times, 99) * 1000
    record.add(metric, statistics.median(times) * 1000, "ms", reference=f"median; p99 {last:.3g} ms")
    record.add(f"{metric} rate", batch / statistics.mean(times), "images/s")


def _measure_decoding(record: Record) -> None:
    """The bodies of requests, decoded by as many threads as there are cores: Pillow works without the lock."""
    photo = make_photo(np.random.default_rng(0))
    spec = Preprocessing(size=256, crop=224, max_pixels=1_000_000)
    count = 2 if record.size.name == "smoke" else 400 * num_cores()
    with ThreadPoolExecutor(num_cores()) as pool:
        list(pool.map(lambda _: decode(photo, spec), range(num_cores())))
        start = perf_counter()
        list(pool.map(lambda _: decode(photo, spec), range(count)))
        seconds = perf_counter() - start
    record.add(DECODED, count / seconds, "images/s", reference=f"{num_cores()} cores; 341 x 256 to 224 pixels")
