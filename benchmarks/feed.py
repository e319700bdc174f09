"""Throughput of prepared batches, compared with a memory copy of the same bytes and a DataLoader over JPEGs."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.made_photos import OPTIONS, photo_folder
from benchmarks.report import Report, alternate, rate, run
from core.machine import num_cores
from data.batches.loader import Batches
from data.batches.shards import PreparedImages
from data.config import DataConfig
from data.ingest.stage import ingest
from data.preparing.stage import prepare

SIZE, BATCH_SIZE = 128, 64


def measure(arguments: argparse.Namespace) -> Report:
    """Prepare the photographs once, then run epochs of the three candidates in turn."""
    report = Report("feed")
    with tempfile.TemporaryDirectory() as scratch:
        photos = photo_folder(arguments.folder, Path(scratch, "photos"), arguments.images)
        images = prepare_photos(photos, Path(scratch), SIZE)
        loader = jpeg_loader(photos)
        batches = Batches(images, BATCH_SIZE, shuffle_seed=0)
        medians = alternate(
            {
                "Convoy": lambda: rate(lambda: sum(len(batch.labels) for batch in batches)),
                "memory copy": lambda: rate(lambda: _copy_all(images)),
                "DataLoader over JPEGs": lambda: rate(lambda: sum(len(labels) for _, labels in loader)),
            },
            arguments.rounds,
        )
    convoy = medians["Convoy"]
    for name, value in medians.items():
        report.add(f"{name}, {SIZE} px", value, "images/s")
    report.add(
        "Convoy / memory copy", convoy / medians["memory copy"], "x", reference="shuffled rows against one block"
    )
    report.add("Convoy / DataLoader", convoy / medians["DataLoader over JPEGs"], "x", goal=20, reference="ImageFolder")
    return report


def prepare_photos(photos: Path, scratch: Path, size: int) -> PreparedImages:
    """Ingest and prepare a folder. Returns its training split."""
    config = DataConfig(source="folder", path=photos, size=size)
    ingest(config, scratch / "raw", scratch / "ingest-state.json")
    manifest = prepare(config, scratch / "raw", scratch / "prepared", scratch / "parts")
    return PreparedImages(scratch / "prepared", manifest, "train")


def jpeg_loader(photos: Path) -> "torch.utils.data.DataLoader[tuple[torch.Tensor, torch.Tensor]]":
    """The usual way: decode, resize and crop every image in every epoch, with one worker per core."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE), v2.PILToTensor()])
    nested = photos / "train"
    dataset = ImageFolder(nested if nested.is_dir() else photos, transform)
    return torch.utils.data.DataLoader(
        dataset, BATCH_SIZE, shuffle=True, num_workers=num_cores(), persistent_workers=True, drop_last=True
    )


def _copy_all(images: PreparedImages) -> int:
    """Copy the bytes of all batches, each from one block of memory to another. Returns the number of images."""
    source = np.concatenate([np.asarray(images.gather(np.arange(BATCH_SIZE)))])
    target = np.empty_like(source)
    num_batches = len(images) // BATCH_SIZE
    for _ in range(num_batches):
        np.copyto(target, source)
    return num_batches * BATCH_SIZE


if __name__ == "__main__":
    run(measure, OPTIONS)
