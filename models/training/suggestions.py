"""Suggested settings for the prepared images and this machine.

The durations are measured with a few batches of the suggested networks, at the suggested sizes.
"""

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from data.ingest.raw_shards import open_shard
from data.manifest import DataManifest
from data.splits import Split
from models.config import ModelConfig, TrainingConfig
from models.exported.onnx_file import write_onnx
from models.exported.session import open_session
from models.networks.registry import build_network, computes_channels_last
from models.training.execution import training_device
from models.training.features import BATCH_SIZE, last_linear
from models.training.optimizers import make_optimizer
from models.training.recipes import RECIPES

PRETRAINED = "efficientnet_lite0"
SMALL_SIDE = 64
"""In pixels. Smaller images hold too little detail for a network that was trained on photographs."""
SAMPLED = 200
"""Number of images whose size is read."""
FIT_SECONDS_PER_VALUE = 5e-7
"""Logistic regression, per image, class and feature: 18 s for 3,068 images, 10 classes and 1,280 features."""
MIN_SECONDS = 1.0
"""Minimum duration of each measurement."""


@dataclass(frozen=True)
class Suggestion:
    """Suggested training."""

    goal: str
    settings: dict[str, str]
    seconds: float
    """duration of computing features or of training, on this machine"""


def typical_side(raw: Path) -> int:
    """Return the median of the shorter sides of some images in `raw`, in pixels."""
    sides: list[int] = []
    for shard in sorted(raw.glob("*.parquet")):
        with open_shard(shard) as file:
            images = file.read_row_group(0, columns=["image"])["image"].slice(0, SAMPLED).to_pylist()
        for image in images:
            try:
                with Image.open(io.BytesIO(image)) as picture:
                    sides.append(min(picture.size))
            except (OSError, ValueError, SyntaxError):
                continue  # the data report lists this image
        if len(sides) >= SAMPLED:
            break
    return round(median(sides)) if sides else SMALL_SIDE


def suggest(manifest: DataManifest, side: int) -> list[Suggestion]:
    """Suggest trainings for a first, a good and the best result, with their durations on this machine.

    Args:
        manifest: manifest of the prepared images.
        side: typical shorter side of the images in the source, in pixels.

    """
    if side < SMALL_SIDE:
        return [_from_nothing(manifest, side, goal, epochs) for goal, epochs in _EPOCHS.items()]
    small, large = min(side, 160), min(side, 224)
    probe, tuned = _probe_seconds(manifest, small), _training_seconds(manifest, PRETRAINED, small, "finetune", 5)
    best = _probe_seconds(manifest, large) + _training_seconds(manifest, PRETRAINED, large, "finetune", 12)
    pretrained = {"model.network": PRETRAINED, "model.weights": "imagenet"}
    return [
        Suggestion("first", pretrained | {"data.size": str(small), "training.recipe": "probe"}, probe),
        Suggestion("good", pretrained | {"data.size": str(small)}, probe + tuned),
        Suggestion("best", pretrained | {"data.size": str(large), "training.max_epochs": "12"}, best),
    ]


_EPOCHS = {"first": 5, "good": 12, "best": 40}
"""Number of epochs for small images, which are trained from random weights."""


def _from_nothing(manifest: DataManifest, side: int, goal: str, epochs: int) -> Suggestion:
    size = max(32, side)
    settings = {"data.size": str(size), "training.max_epochs": str(epochs)}
    return Suggestion(goal, settings, _training_seconds(manifest, "alexnet", size, "modern", epochs))


def _probe_seconds(manifest: DataManifest, size: int) -> float:
    """Seconds to compute the features of all images for a probe, and to fit the probe."""
    splits: tuple[Split, ...] = ("train", "val")
    num_images = sum(manifest.num_in(split) for split in splits)
    network = build_network(ModelConfig(network=PRETRAINED), len(manifest.classes), size)
    name, last = last_linear(network)
    network.set_submodule(name, torch.nn.Identity())
    pixels = np.zeros((BATCH_SIZE, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(write_onnx(_FromPixels(network), size, Path(folder, "backbone.onnx"), "features"))
        seconds = _median_seconds(lambda: session.run(["features"], {"image": pixels}))
    fit = FIT_SECONDS_PER_VALUE * manifest.num_in("train") * len(manifest.classes) * last.in_features
    return seconds * num_images / BATCH_SIZE + fit


class _FromPixels(torch.nn.Module):
    """Wraps a network to take images, uint8 [N, S, S, 3]."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(images.permute(0, 3, 1, 2) / 255.0)
        return features


def _training_seconds(manifest: DataManifest, network: str, size: int, recipe: str, epochs: int) -> float:
    """Seconds of all epochs, estimated from the median step."""
    values, device = RECIPES[recipe], training_device(TrainingConfig())
    model = build_network(ModelConfig(network=network), len(manifest.classes), size).to(device).train()
    if device.type != "cpu" or computes_channels_last(ModelConfig(network=network)):
        model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(values, model, values.batch_size)
    images = torch.randn(values.batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(values.batch_size, dtype=torch.int64, device=device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device.type != "cpu":
            torch.accelerator.synchronize()

    return _median_seconds(step) * epochs * manifest.num_in("train") / values.batch_size


def _median_seconds(work: Callable[[], object]) -> float:
    """Median duration of some calls. The first call is not counted."""
    work()
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < MIN_SECONDS:
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return median(seconds)
