"""How fast are photographs prepared? Against cores x what one core decodes and resizes, and against torchvision."""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks.photos import IMAGENET_SIZE, OPTIONS, photo_folder
from benchmarks.photos import SIZE as PHOTO_SIZE
from benchmarks.report import Report, alternate, rate, run
from data.config import DataConfig
from data.decode import Preprocessing, decode
from data.ingest import ingest
from data.prepare import prepare
from data.stage import num_cores

SIZE = 128
NUM_DECODED = 1000


def measure(arguments: argparse.Namespace) -> Report:
    """Prepare all photographs from scratch, decode some of them on one core, and read all through a DataLoader."""
    report = Report("prepare")
    for width, height in [PHOTO_SIZE] if arguments.folder else [IMAGENET_SIZE, PHOTO_SIZE]:
        with tempfile.TemporaryDirectory() as scratch_name:
            scratch = Path(scratch_name)
            photos = photo_folder(arguments.folder, scratch / "photos", arguments.images, (width, height))
            paths = sorted(photos.rglob("*.jpg"))
            encoded = [path.read_bytes() for path in paths[:: max(1, len(paths) // NUM_DECODED)]]
            ingest(DataConfig(source="folder", path=photos, size=SIZE), scratch / "raw", scratch / "state.json")
            with ProcessPoolExecutor(num_cores(), get_context("spawn"), _keep, (encoded,)) as pool:
                medians = alternate(_candidates(photos, scratch, encoded, pool), arguments.rounds)
        what = str(arguments.folder) if arguments.folder else f"{width} x {height} px"
        _add(report, medians, f"{len(paths):,} photographs, {what}")
    return report


def _candidates(
    photos: Path, scratch: Path, encoded: list[bytes], pool: ProcessPoolExecutor
) -> dict[str, Callable[[], float]]:
    config = DataConfig(source="folder", path=photos, size=SIZE)
    return {
        "one core, decode and resize": lambda: rate(partial(_decode_all, encoded)),
        "all cores, decode and resize": lambda: rate(lambda: sum(pool.map(_decode_kept, range(4 * num_cores())))),
        "prepare": lambda: rate(partial(_prepare, config, scratch)),
        "ingest and prepare": lambda: rate(partial(_ingest_and_prepare, config, scratch)),
        "ImageFolder in a DataLoader": lambda: rate(partial(_load_all, photos)),
    }


def _add(report: Report, medians: dict[str, float], photographs: str) -> None:
    limit = num_cores() * medians["one core, decode and resize"]
    for name, value in medians.items():
        report.add(f"{name}, {SIZE} px", value, "images/s", reference=photographs)
    for name in ("prepare", "ingest and prepare"):
        reference = f"{num_cores()} x one core; {photographs}"
        report.add(f"{name} / limit", medians[name] / limit, "x", goal=0.85, reference=reference)
    report.add(
        "all cores, decode and resize / limit",
        medians["all cores, decode and resize"] / limit,
        "x",
        reference="processes that run already: what this machine's cores leave each other",
    )
    report.add("prepare / DataLoader", medians["prepare"] / medians["ImageFolder in a DataLoader"], "x")


_kept: list[bytes] = []
"""What a process of the pool decodes."""


def _keep(encoded: list[bytes]) -> None:
    _kept.extend(encoded)


def _decode_kept(turn: int) -> int:
    """Decode a fourth of what is kept."""
    return _decode_all(_kept[turn % 4 :: 4])


def _decode_all(encoded: list[bytes]) -> int:
    spec = Preprocessing(size=SIZE, crop=SIZE, max_pixels=50_000_000)
    for image in encoded:
        decode(image, spec)
    return len(encoded)


def _load_all(photos: Path) -> int:
    # Every process that `prepare` starts imports this file, and would wait seconds for torch.
    from benchmarks.feed import jpeg_loader

    return sum(len(labels) for _, labels in jpeg_loader(photos))


def _prepare(config: DataConfig, scratch: Path) -> int:
    for name in ("prepared", "parts"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    return prepare(config, scratch / "raw", scratch / "prepared", scratch / "parts").num_images


def _ingest_and_prepare(config: DataConfig, scratch: Path) -> int:
    shutil.rmtree(scratch / "raw", ignore_errors=True)
    (scratch / "state.json").unlink(missing_ok=True)
    ingest(config, scratch / "raw", scratch / "state.json")
    return _prepare(config, scratch)


if __name__ == "__main__":
    run(measure, OPTIONS)
