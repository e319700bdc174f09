"""Random numbers for a batch of images, or for the batches of several steps: each step has its own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from data.batches.loader import Share

SEEDED = 64
"""Steps whose seeds are made together: that takes longer than all that a step of a small network draws."""


@dataclass(frozen=True)
class Draws:
    """What is drawn follows from (seed, epoch, step), whatever the device and however many steps are drawn together.

    Each `stream` has draws of its own. Of several processes, which share a batch, each draws for all of it.
    """

    seed: int
    epoch: int
    steps: range
    num_images: int
    """of a step, over all processes"""
    share: Share
    stream: int = 0

    def each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Draw something for each image of this process, [N, ...], with what draws it for all images of a step."""
        drawn = [draw(generator)[self.share.rank :: self.share.num_processes] for generator in self._generators]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)

    @cached_property
    def _generators(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in self.seeds()]

    def seeds(self) -> list[int]:
        """Give the seed of each step."""
        return [seed_of(self.seed, self.epoch, step, stream=self.stream) for step in self.steps]


def seed_of(seed: int, epoch: int, step: int, *, stream: int = 0) -> int:
    """Seed what a step draws from one of its streams of random numbers."""
    return _seeds(seed, epoch, step // SEEDED, stream)[step % SEEDED]


@lru_cache(maxsize=64)
def _seeds(*key: int) -> list[int]:
    """Seed some steps in a row, at the cost of one."""
    states = np.random.SeedSequence(key).generate_state(SEEDED, np.uint64)
    return [int(state >> np.uint64(1)) for state in states]
