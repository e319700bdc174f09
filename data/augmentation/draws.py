"""Random numbers for the images of one step: each step has its own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data.batches.loader import Share


@dataclass(frozen=True)
class Draws:
    """What is drawn follows from (seed, epoch, step), whatever the device.

    Each `stream` has draws of its own. Of several processes, which share a batch, each draws for all of it.
    """

    seed: int
    epoch: int
    step: int
    num_images: int
    """of the step, over all processes"""
    share: Share
    stream: int = 0

    def each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Draw something for each image of this process, [N, ...], with what draws it for all images of the step."""
        return draw(self._generator)[self.share.rank :: self.share.num_processes]

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.own_seed)

    @property
    def own_seed(self) -> int:
        """The seed of this step and stream."""
        return seed_of(self.seed, self.epoch, self.step, stream=self.stream)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed what layers and transforms draw from, on the CPU and on `device`.

    Not by `torch.manual_seed`, which seeds all kinds of devices: one that is not used costs it 1.5 ms.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def seed_of(seed: int, epoch: int, step: int, *, stream: int = 0) -> int:
    """Seed what a step draws from one of its streams of random numbers."""
    state = np.random.SeedSequence((seed, epoch, step, stream)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
