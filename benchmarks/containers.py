"""What does the container of an endpoint cost: its start, its memory, its image? `python -m benchmarks.containers`."""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.made_photos import IMAGENET_SIZE, make_photo
from benchmarks.report import Report, run
from benchmarks.serve_container import OPEN, container
from benchmarks.serve_load import Call, together
from benchmarks.serve_models import export_model
from core.errors import UserError
from serving.config import ServingConfig
from serving.packaging.bento import Bento, build_bento, read_placement
from serving.packaging.image import Image, build_image, inspect_image
from serving.rollout.docker import docker
from serving.targets import TARGETS

RAW = {"Content-Type": "application/octet-stream"}
NUM_IMAGES = 16

SIZE_GOALS = {"edge": 180, "cpu": 230}
"""Megabytes over the base image and the model."""
MEMORY_GOALS = {"edge": 130, "cpu": 200}
"""Megabytes over the model, after `NUM_REQUESTS`."""
NUM_REQUESTS = 1000
START_GOAL = 1.5
"""Seconds, for edge."""


def measure(arguments: argparse.Namespace) -> Report:
    """Measure the images of AlexNet for each target that a CPU serves."""
    report = Report("containers")
    with tempfile.TemporaryDirectory() as name:
        rng, scratch = np.random.default_rng(0), Path(name)
        images = [make_photo(rng, *IMAGENET_SIZE) for _ in range(NUM_IMAGES)]
        for target, network in (("edge", "mobilenet_v3_small"), ("cpu", "alexnet")):
            model = export_model(network, scratch / network, 256, 224)
            bento = build_bento(model, ServingConfig(target=target), scratch / "bentos")
            image = build_image(bento)
            try:
                _measure_image(report, bento, image)
                _measure_containers(report, bento, image, images, arguments.rounds)
            finally:
                docker("image", "rm", image.tag)
    return report


def _measure_image(report: Report, bento: Bento, image: Image) -> None:
    base = inspect_image(TARGETS[bento.target].base_image)
    over = (image.size_bytes - base.size_bytes - _model_bytes(bento)) / 1e6
    report.add(
        f"{bento.target}: image over its base and its model", over, "MB", at_most=SIZE_GOALS[bento.target],
        reference=f"{image.size_bytes / 1e6:.0f} MB with both, uncompressed",
    )  # fmt: skip


def _measure_containers(report: Report, bento: Bento, image: Image, bodies: Sequence[bytes], rounds: int) -> None:
    target, starts = TARGETS[bento.target], []
    for _ in range(rounds + 1):
        with container(image, target, *OPEN) as started:
            starts.append(started.start_seconds)
    report.add(
        f"{bento.target}: from the start of a container to ready", statistics.median(starts[1:]), "s",
        at_most=START_GOAL if bento.target == "edge" else None, reference=f"{target.cpus:g} cores, read-only",
    )  # fmt: skip
    with container(image, target, *OPEN) as started:
        together(Call(started.port, "/classify", bodies, RAW), num_clients=16, num_requests=NUM_REQUESTS)
        over = (started.memory_bytes() - _model_bytes(bento)) / 1e6
    report.add(
        f"{bento.target}: memory over the model", over, "MB", at_most=MEMORY_GOALS[bento.target],
        reference=f"after {NUM_REQUESTS:,} requests of 16 clients; limit of the container {target.memory_mb} MB",
    )  # fmt: skip


def _model_bytes(bento: Bento) -> int:
    return (bento.path / "src" / "model" / read_placement(bento).runtime.model_file).stat().st_size


if __name__ == "__main__":
    try:
        docker("version", timeout=30)
    except UserError as error:
        print(f"containers: not measured: {error}")
    else:
        run(measure)
