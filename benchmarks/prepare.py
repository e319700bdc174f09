"""How fast are photographs prepared? Against cores x what one core decodes and resizes, and against torchvision."""

import argparse
import shutil
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.feed import OPTIONS, jpeg_loader
from benchmarks.photos import photo_folder
from benchmarks.report import Report, alternate, rate, run
from data.config import DataConfig
from data.decode import Preprocessing, decode
from data.ingest import ingest
from data.prepare import prepare
from data.stage import num_cores

SIZE = 128
NUM_DECODED = 500


def measure(arguments: argparse.Namespace) -> Report:
    """Prepare all photographs from scratch, decode some of them on one core, and read all through a DataLoader."""
    report = Report("prepare")
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        photos = photo_folder(arguments.folder, scratch / "photos", arguments.images)
        config = DataConfig(source="folder", path=photos, size=SIZE)
        encoded = [
            path.read_bytes() for path in sorted(photos.rglob("*.jpg"))[:: max(1, arguments.images // NUM_DECODED)]
        ]
        ingest(config, scratch / "raw", scratch / "state.json")
        medians = alternate(
            {
                "one core, decode and resize": lambda: rate(partial(_decode_all, encoded)),
                "prepare": lambda: rate(partial(_prepare, config, scratch)),
                "ingest and prepare": lambda: rate(partial(_ingest_and_prepare, config, scratch)),
                "ImageFolder in a DataLoader": lambda: rate(
                    lambda: sum(len(labels) for _, labels in jpeg_loader(photos))
                ),
            },
            arguments.rounds,
        )
    limit = num_cores() * medians["one core, decode and resize"]
    for name, value in medians.items():
        report.add(f"{name}, {SIZE} px", value, "images/s")
    report.add("prepare / limit", medians["prepare"] / limit, "x", goal=0.85, reference=f"{num_cores()} x one core")
    report.add(
        "ingest and prepare / limit", medians["ingest and prepare"] / limit, "x", goal=0.85, reference="the same"
    )
    report.add("prepare / DataLoader", medians["prepare"] / medians["ImageFolder in a DataLoader"], "x")
    return report


def _decode_all(encoded: list[bytes]) -> int:
    spec = Preprocessing(size=SIZE, crop=SIZE, max_pixels=50_000_000)
    for image in encoded:
        decode(image, spec)
    return len(encoded)


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
