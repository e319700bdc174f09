"""Prepared folder of noise for Convoy's pipeline, made in a second without the preparation of real images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from core.checksum import file_checksum
from data.config import AugmentationConfig
from data.manifest import MANIFEST_FILE, ColorStatistics, DataManifest, Shard, labels_file
from data.splits import Split
from models.config import ModelConfig, TrainingConfig
from models.training.job import TrainingJob


@dataclass(frozen=True)
class Shape:
    """Number and size of the images of noise."""

    train: int
    held_out: int
    pixels: int
    num_classes: int
    repeats: int = 1
    """how often the manifest lists the file of the training images, for epochs of many steps with little disk space"""


def make_prepared(folder: Path, shape: Shape) -> Path:
    """Write shards, labels and manifest of noise. The same shape gives the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shards: list[Shard] = []
    splits: dict[Split, dict[str, int]] = {}
    classes = tuple(f"class-{number:04d}" for number in range(shape.num_classes))
    sizes: dict[Split, tuple[int, int]] = {
        "train": (shape.train, shape.repeats), "val": (shape.held_out, 1), "test": (shape.held_out, 1)
    }  # fmt: skip
    for split, (count, repeats) in sizes.items():
        path = folder / f"{split}-000.npy"
        np.save(path, rng.integers(0, 256, (count, shape.pixels, shape.pixels, 3), dtype=np.uint8))
        shard = Shard(split=split, name=path.name, num_images=count, checksum=file_checksum(path))
        shards += [shard] * repeats
        labels = np.tile(rng.integers(shape.num_classes, size=count), repeats)
        np.save(folder / labels_file(split), labels)
        counts = np.bincount(labels, minlength=shape.num_classes).tolist()
        splits[split] = dict(zip(classes, counts, strict=True))
    manifest = DataManifest(
        source="noise", mirror_keeps_label=True, size=shape.pixels, max_pixels=1_000_000, classes=classes,
        splits=splits, color=COLOR, rejected=(), shards=tuple(shards),
    )  # fmt: skip
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


COLOR = ColorStatistics(
    mean=(0.5, 0.5, 0.5),
    std=(0.29, 0.29, 0.29),
    eigenvalues=(0.08, 0.08, 0.09),
    eigenvectors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
)
"""Approximately the statistics of uniform noise."""


def make_job(prepared: Path, pixels: int, device: torch.device, training: dict[str, object]) -> TrainingJob:
    """Make a training job of AlexNet (bn) on the folder, without `auto` settings."""
    fixed = {"precision": "bf16", "channels_last": True, "accelerator": "gpu" if device.type == "cuda" else "cpu"}
    model = ModelConfig(network="alexnet", input_size=pixels)
    return TrainingJob(prepared, "noise", model, AugmentationConfig(), TrainingConfig.model_validate(fixed | training))
