"""What is decided about a model when it is packed for a target: how it computes, and how many images together."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from core.errors import UserError
from serving.targets import Runtime, Target

if TYPE_CHECKING:
    from models.exported.manifest import ModelManifest

PACKING_FILE = "packing.json"
EXAMPLES_FILE = "examples.json"
ROUNDS = 10
SECONDS = 5
"""The rounds stop after so long, of which two are enough for a large network."""
MIN_GAIN = 1.15
"""Batches that give less than this over single images are not worth the waiting."""
MIN_SOONER_MS = 1.0
"""Cores that predict one image less than so much sooner together do more apart: decoding alone takes longer."""
NEARLY_BEST = 0.95
"""The smallest batch that is this close to the best is as good, and answers sooner."""
APART = 0
"""In the place of a size: single images, on each core one after another, measured in turn with the batches."""
ENDPOINT_MB = 130
"""What an endpoint takes besides its model."""

_log = logging.getLogger("convoy")


class Packing(BaseModel):
    """How a packed model is run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str
    max_batch: int
    num_cores: int
    """that one prediction computes on; 0: all there are"""
    lone_ms: dict[int, float]
    """of predicting an image while nothing else is done, by these cores; empty where it was not timed"""
    images_per_second: dict[int, float]
    """by the size of a batch that all cores compute together; empty where it was not timed"""
    apart_per_second: float | None
    """images, where each core computes one after another; None where it was not timed"""


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
    """Time the model in the folder `model` as `target` would run it; choose cores and size of a batch."""
    if len(target.batch_sizes) == 1:
        (max_batch,) = target.batch_sizes
        return Packing(
            precision=runtime.precision, max_batch=max_batch, num_cores=target.num_cores,
            lone_ms={}, images_per_second={}, apart_per_second=None,
        )  # fmt: skip
    predictors = {cores: resolve_name(runtime.predictor)(model, num_threads=cores) for cores in {1, target.num_cores}}
    lone = _measure_lone(predictors)
    rates, apart = _measure_rates(predictors[target.num_cores], predictors[1], target)
    max_batch = choose_max_batch(rates, apart)
    # Batches take their cores from decoding, and are to be done soon: on one core each, they kept both from it.
    num_cores = choose_num_cores(lone, MIN_SOONER_MS if max_batch == 1 else 0)
    return Packing(
        precision=runtime.precision, max_batch=max_batch, num_cores=num_cores,
        lone_ms=lone, images_per_second=rates, apart_per_second=apart,
    )  # fmt: skip


def choose_num_cores(lone_ms: dict[int, float], min_sooner_ms: float) -> int:
    """Choose the cores that a prediction computes on, by the milliseconds that one alone takes on so many.

    As few as possible, unless more answer sooner by more than `min_sooner_ms`: what several cores do together takes
    them more time in all than what each does by itself.
    """
    best = min(lone_ms.values())
    return min(cores for cores, needed in lone_ms.items() if needed <= best + min_sooner_ms)


def choose_max_batch(rates: dict[int, float], apart: float) -> int:
    """Choose the largest number of images to predict together.

    Args:
        rates: images a second in batches of each size, 1 among them, which all cores compute together.
        apart: images a second where each core computes single ones.

    """
    best = max(rates.values())
    if best < MIN_GAIN * max(rates[1], apart):
        return 1
    return min(size for size, rate in rates.items() if rate >= NEARLY_BEST * best)


def _measure_lone(predictors: dict[int, Any]) -> dict[int, float]:
    """Milliseconds of one image by itself, on each number of cores."""
    work = {cores: partial(predict, _images(predict, 1)) for cores, predict in predictors.items()}
    return {cores: 1e3 * seconds for cores, seconds in _medians(work).items()}


def _measure_rates(together: Any, alone: Any, target: Target) -> tuple[dict[int, float], float]:
    """Images a second in batches of each size, `together` on all cores; and one by one, `alone` on each core."""
    images, cores = _images(together, max(target.batch_sizes)), target.streams(1)

    def predict_all(predict: Any, size: int) -> None:
        for start in range(0, len(images), size):
            predict(images[start : start + size])

    with ThreadPoolExecutor(cores) as pool:
        work = {size: partial(predict_all, together, size) for size in target.batch_sizes}
        seconds = _medians(work | {APART: lambda: list(pool.map(predict_all, [alone] * cores, [1] * cores))})
    apart = cores * len(images) / seconds.pop(APART)
    return {size: len(images) / needed for size, needed in seconds.items()}, apart


def _images(predict: Any, number: int) -> Any:
    import numpy as np

    crop = predict.manifest.preprocessing.crop
    return np.random.default_rng(0).integers(0, 256, (number, crop, crop, 3), dtype=np.uint8)


def _medians(work: Mapping[int, Callable[[], object]]) -> dict[int, float]:
    """Seconds that each piece of work takes; they take turns, and the first round warms up."""
    seconds: dict[int, list[float]] = {key: [] for key in work}
    end = time.perf_counter() + SECONDS
    for number in range(ROUNDS + 1):
        for key, do in work.items():
            started = time.perf_counter()
            do()
            if number:
                seconds[key].append(time.perf_counter() - started)
        if number >= 2 and time.perf_counter() > end:
            break
    return {key: median(values) for key, values in seconds.items()}
