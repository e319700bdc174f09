"""Decisions when a model is packaged for a target: runtime, batch size and number of cores."""

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
PLACEMENT_FILE = "placement.json"
EXAMPLES_FILE = "examples.json"
SCHEMA_FILE = "schema.json"
ROUNDS = 10
SECONDS = 5
"""Time limit of all rounds. At least two rounds are measured, which is enough for a large network."""
MIN_GAIN = 1.15
"""Below this speed-up over single images, batches are not worth the wait."""
MIN_SOONER_MS = 1.0
"""Below this speed-up, run one prediction per core instead of one prediction on all cores. Decoding takes longer."""
NEARLY_BEST = 0.95
"""The smallest batch with this share of the best throughput is chosen, because it answers sooner."""
APART = 0
"""Key among the batch sizes: single images, one prediction per core."""
ENDPOINT_MB = 130
"""Memory of an endpoint without its model."""

_log = logging.getLogger("convoy")


class Packing(BaseModel):
    """How a packaged model is run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str
    max_batch: int
    num_cores: int
    """cores of one prediction; 0: all cores"""
    lone_ms: dict[int, float]
    """milliseconds of one image on an idle machine, by number of cores; empty if not measured"""
    images_per_second: dict[int, float]
    """throughput of batches on all cores, by batch size; empty if not measured"""
    apart_per_second: float | None
    """throughput of single images, one prediction per core; None if not measured"""


def choose_runtime(manifest: "ModelManifest", target: Target, name: str) -> Runtime:
    """Choose the target's first runtime for which the model has a file.

    Raises:
        UserError: the model has no file for any runtime of the target.

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
        UserError: the model is too large.

    """
    needed = ENDPOINT_MB + (model / runtime.model_file).stat().st_size / 1_000_000
    if needed > target.memory_mb:
        raise UserError(
            f"the model in {runtime.precision} needs about {needed:.0f} MB on {name}, whose limit is "
            f"{target.memory_mb} MB: train a smaller network, or take another target"
        )


def measure_packing(model: Path, runtime: Runtime, target: Target) -> Packing:
    """Time the model in the folder `model` as `target` would run it. Choose the cores and the batch size."""
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
    # A batch runs on all cores and ends soon. Two batches on one core each would keep both cores from decoding.
    num_cores = choose_num_cores(lone, MIN_SOONER_MS if max_batch == 1 else 0)
    return Packing(
        precision=runtime.precision, max_batch=max_batch, num_cores=num_cores,
        lone_ms=lone, images_per_second=rates, apart_per_second=apart,
    )  # fmt: skip


def choose_num_cores(lone_ms: dict[int, float], min_sooner_ms: float) -> int:
    """Choose the number of cores of a prediction, from the milliseconds of one prediction by number of cores.

    More cores must save more than `min_sooner_ms`, because one prediction on several cores takes more CPU time than one
    prediction per core.
    """
    best = min(lone_ms.values())
    return min(cores for cores, needed in lone_ms.items() if needed <= best + min_sooner_ms)


def choose_max_batch(rates: dict[int, float], apart: float) -> int:
    """Choose the maximum batch size.

    Args:
        rates: images per second by batch size, 1 among them. Each batch runs on all cores.
        apart: images per second of single images, one prediction per core.

    """
    best = max(rates.values())
    if best < MIN_GAIN * max(rates[1], apart):
        return 1
    return min(size for size, rate in rates.items() if rate >= NEARLY_BEST * best)


def _measure_lone(predictors: dict[int, Any]) -> dict[int, float]:
    """Milliseconds of one image, by number of cores."""
    work = {cores: partial(predict, _images(predict, 1)) for cores, predict in predictors.items()}
    return {cores: 1e3 * seconds for cores, seconds in _medians(work).items()}


def _measure_rates(together: Any, alone: Any, target: Target) -> tuple[dict[int, float], float]:
    """Images per second: by batch size, `together` on all cores; and of single images, `alone` on each core."""
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
    """Median seconds of each piece of work. The pieces take turns, and the first round warms up."""
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
