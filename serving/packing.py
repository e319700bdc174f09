"""What is decided about a model when it is packed for a target: how it computes, and how many images together."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from data.errors import UserError
from serving.targets import Runtime, Target

if TYPE_CHECKING:
    from models.manifest import ModelManifest

PACKING_FILE = "packing.json"
ROUNDS = 10
SECONDS = 8
"""The rounds stop after so long, of which two are enough for a large network."""
MIN_GAIN = 1.15
"""Batches that give less than this over single images are not worth the waiting."""
NEARLY_BEST = 0.95
"""The smallest batch that is this close to the best is as good, and answers sooner."""
ENDPOINT_MB = 130
"""What an endpoint takes besides its model."""

_log = logging.getLogger("convoy")


class Packing(BaseModel):
    """How a packed model is run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str
    max_batch: int
    images_per_second: dict[int, float]
    """by the size of the batch, where the Bento was built; empty where it was not timed"""


def choose_runtime(manifest: "ModelManifest", target: Target, name: str) -> Runtime:
    """Choose how the model is computed: the target's first way that the model has a file for.

    Raises:
        UserError: there is none.

    """
    best, model = target.runtimes[0], f"{manifest.name} v{manifest.version}"
    for runtime in target.runtimes:
        if runtime.model_file in manifest.files:
            if runtime is not best:
                why = manifest.int8.refusal if manifest.int8 else "it was exported before there was a choice"
                _log.warning("package: %s on %s in %s, not %s: %s", model, name, runtime.precision, best.precision, why)
            return runtime
    raise UserError(f"{model} was registered without {best.model_file}: train and register anew")


def check_memory(model: Path, runtime: Runtime, target: Target, name: str) -> None:
    """Refuse a model that the target's memory cannot hold.

    Raises:
        UserError: it is too large.

    """
    needed = ENDPOINT_MB + (model / runtime.model_file).stat().st_size / 1_000_000
    if needed > target.memory_mb:
        raise UserError(
            f"the model in {runtime.precision} needs about {needed:.0f} MB on {name}, whose limit is "
            f"{target.memory_mb} MB: train a smaller network, or take another target"
        )


def measure_packing(model: Path, runtime: Runtime, target: Target) -> Packing:
    """Time the model in the folder `model` as `target` would run it, and choose the size of its batches."""
    if len(target.batch_sizes) == 1:
        return Packing(precision=runtime.precision, max_batch=target.batch_sizes[0], images_per_second={})
    predictor = resolve_name(runtime.predictor)(model, num_threads=target.num_cores)
    rates = _measure_rates(predictor, predictor.manifest.preprocessing.crop, target)
    return Packing(precision=runtime.precision, max_batch=choose_max_batch(rates), images_per_second=rates)


def choose_max_batch(rates: dict[int, float]) -> int:
    """Choose the largest number of images to predict together, by the images a second for each size, 1 among them."""
    best = max(rates.values())
    if best < MIN_GAIN * rates[1]:
        return 1
    return min(size for size, rate in rates.items() if rate >= NEARLY_BEST * best)


def _measure_rates(predict: Callable[[Any], object], crop: int, target: Target) -> dict[int, float]:
    """Time each size in turns, and single images by as many threads as would predict them without batches."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (max(target.batch_sizes), crop, crop, 3), dtype=np.uint8)
    seconds: dict[int, list[float]] = {size: [] for size in target.batch_sizes}
    end = time.perf_counter() + SECONDS
    with ThreadPoolExecutor(target.threads) as pool:
        for number in range(ROUNDS + 1):
            for size in target.batch_sizes:
                parts = [images[:size]] * (target.threads if size == 1 else 1)
                started = time.perf_counter()
                list(pool.map(predict, parts))
                if number:  # the first round warms up
                    seconds[size].append((time.perf_counter() - started) / len(parts))
            if number >= 2 and time.perf_counter() > end:
                break
    return {size: size / median(values) for size, values in seconds.items()}
