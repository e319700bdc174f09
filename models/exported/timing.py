"""How long models compute, in processor time, which does not depend on how busy the machine is."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, TypeVar

import numpy as np

from data.images.decode import Pixels

TIMED_BATCHES = (1, 8)
ROUNDS = 15
SECONDS = 10.0
"""Rounds stop after so long, of which a large network needs less to be timed well."""

Name = TypeVar("Name", bound=str)


def time_alternately(
    models: Mapping[Name, Callable[[Pixels], Any]], crop: int | Mapping[Name, int], max_seconds: float = SECONDS
) -> dict[Name, dict[int, float]]:
    """Measure the processor time of this thread that each model takes for batches of `TIMED_BATCHES` noise images.

    The models compute in this thread alone. They take turns, so that what fills caches meets all of them.

    Args:
        models: by name, what takes images, uint8 [N, crop, crop, 3].
        crop: pixels on each side of the images, of all models or by name.
        max_seconds: for each size of a batch.

    Returns:
        by name and size of the batch, the median in seconds

    """
    rng = np.random.default_rng(0)
    crops = {name: crop if isinstance(crop, int) else crop[name] for name in models}
    medians: dict[Name, dict[int, float]] = {name: {} for name in models}
    for size in TIMED_BATCHES:
        images = {side: rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8) for side in {*crops.values()}}
        seconds: dict[Name, list[float]] = {name: [] for name in models}
        for name, model in models.items():
            model(images[crops[name]])
        end, rounds = time.perf_counter() + max_seconds, 0
        while rounds == 0 or (time.perf_counter() < end and rounds < ROUNDS):
            for name, model in models.items():
                started = time.thread_time()
                model(images[crops[name]])
                seconds[name].append(time.thread_time() - started)
            rounds += 1
        for name, values in seconds.items():
            medians[name][size] = median(values)
    return medians
