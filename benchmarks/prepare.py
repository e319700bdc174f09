"""Throughput of preparation, compared with cores x one core's decode and resize, and with torchvision."""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import harmonic_mean

import numpy as np

from benchmarks.made_photos import IMAGENET_SIZE, OPTIONS, photo_folder
from benchmarks.made_photos import SIZE as PHOTO_SIZE
from benchmarks.report import Report, measure_in_turn, rate, ratio, run
from core.machine import num_cores
from data.config import DataConfig
from data.images.decode import Preprocessing, decode
from data.ingest.stage import ingest
from data.preparing.stage import prepare

SIZE = 128
NUM_DECODED = 1000
NUM_PARTS = 8
"""Each part of one core's images has its own process, like preparation, because a process's memory layout affects its
decoding speed."""
NUM_FIRST = 16
"""Images that a process decodes before the measurement. Pillow loads its plugins with the first image."""


ONE_CORE = ("one core, decode and resize", "one core, again", "one core, once more")
"""Measured before and after each candidate, in each round, because a machine's speed drifts within minutes by more than
the differences to be measured."""
ALL_CORES = "all cores, decode and resize"
LOADER = "ImageFolder in a DataLoader"


def measure(arguments: argparse.Namespace) -> Report:
    """Prepare all photographs from scratch, decode some of them on one core, and read all through a DataLoader."""
    report = Report("prepare")
    for width, height in [PHOTO_SIZE] if arguments.folder else [IMAGENET_SIZE, PHOTO_SIZE]:
        with tempfile.TemporaryDirectory() as scratch_name:
            scratch = Path(scratch_name)
            photos = photo_folder(arguments.folder, scratch / "photos", arguments.images, (width, height))
            paths = sorted(photos.rglob("*.jpg"))
            ingest(DataConfig(source="folder", path=photos, size=SIZE), scratch / "raw", scratch / "state.json")
            figures = measure_in_turn(_candidates(photos, paths, scratch), arguments.rounds)
        what = str(arguments.folder) if arguments.folder else f"{width} x {height} px"
        _add(report, figures, f"{len(paths):,} photographs, {what}")
    return report


def _candidates(photos: Path, paths: list[Path], scratch: Path) -> dict[str, Callable[[], float]]:
    config = DataConfig(source="folder", path=photos, size=SIZE)
    encoded = [path.read_bytes() for path in paths[:: max(1, len(paths) // NUM_DECODED)]]
    parts = [encoded[first::NUM_PARTS] for first in range(NUM_PARTS)]
    one_core = partial(_decoding_rate, parts, 1)
    return {
        ONE_CORE[0]: one_core,
        "prepare": lambda: sum(_rates(partial(_prepare_rate, config, scratch), 1)),
        ONE_CORE[1]: one_core,
        "ingest and prepare": lambda: sum(_rates(partial(_ingest_and_prepare_rate, config, scratch), 1)),
        ONE_CORE[2]: one_core,
        ALL_CORES: lambda: _decoding_rate(parts, num_cores()),
        LOADER: lambda: rate(partial(_load_all, photos)),
    }


def _decoding_rate(parts: list[list[bytes]], num_processes: int) -> float:
    """Return the images per second of several processes together."""
    rates = [one for part in parts for one in _rates(partial(_decode_rate, part), num_processes)]
    return num_processes * harmonic_mean(rates)


def _rates(rate_of: Callable[[], float], num_processes: int) -> list[float]:
    """Return the measurements of several new processes that begin together."""
    context = get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, context.Barrier(num_processes).wait) as pool:
        return [done.result() for done in [pool.submit(rate_of) for _ in range(num_processes)]]


def _add(report: Report, figures: dict[str, list[float]], photographs: str) -> None:
    one_core = np.array([figures.pop(name) for name in ONE_CORE])
    for name, values in {ONE_CORE[0]: one_core.ravel(), **figures}.items():
        report.add(f"{name}, {SIZE} px", float(np.median(values)), "images/s", reference=photographs)
    limits = num_cores() * one_core
    for name, around in {"prepare": limits[:2], "ingest and prepare": limits[1:]}.items():
        reference = f"{num_cores()} x one core; {photographs}"
        report.add(f"{name} / limit", ratio(figures[name], around.mean(axis=0)), "x", goal=0.75, reference=reference)
    what = "processes that run already: what this machine's cores leave each other"
    report.add(f"{ALL_CORES} / limit", ratio(figures[ALL_CORES], limits[2]), "x", reference=what)
    report.add("prepare / DataLoader", ratio(figures["prepare"], figures[LOADER]), "x")


def _decode_rate(encoded: list[bytes]) -> float:
    _decode_all(encoded[:NUM_FIRST])
    return rate(partial(_decode_all, encoded))


def _decode_all(encoded: list[bytes]) -> int:
    spec = Preprocessing(size=SIZE, crop=SIZE, max_pixels=50_000_000)
    for image in encoded:
        decode(image, spec)
    return len(encoded)


def _load_all(photos: Path) -> int:
    # Every process imports this file. The import of torch would take seconds.
    from benchmarks.feed import jpeg_loader

    return sum(len(labels) for _, labels in jpeg_loader(photos))


def _prepare_rate(config: DataConfig, scratch: Path) -> float:
    _remove(scratch, "prepared", "parts")
    return rate(partial(_prepare, config, scratch))


def _ingest_and_prepare_rate(config: DataConfig, scratch: Path) -> float:
    _remove(scratch, "raw", "prepared", "parts")
    (scratch / "state.json").unlink(missing_ok=True)
    return rate(partial(_ingest_and_prepare, config, scratch))


def _remove(scratch: Path, *names: str) -> None:
    """Remove the results of an earlier round: 0.06 s per gigabyte, which must not count as preparation."""
    for name in names:
        shutil.rmtree(scratch / name, ignore_errors=True)


def _prepare(config: DataConfig, scratch: Path) -> int:
    return prepare(config, scratch / "raw", scratch / "prepared", scratch / "parts").num_images


def _ingest_and_prepare(config: DataConfig, scratch: Path) -> int:
    ingest(config, scratch / "raw", scratch / "state.json")
    return _prepare(config, scratch)


if __name__ == "__main__":
    run(measure, OPTIONS)
