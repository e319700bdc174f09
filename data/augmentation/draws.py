"""Random numbers for the images of one step. Each step has its own numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data.batches.loader import Share


@dataclass(frozen=True)
class Draws:
    """Draws that depend only on (seed, epoch, step) and stream, not on the device.

    Each `stream` has its own draws. Processes that share a batch draw for the whole batch.
    """

    seed: int
    epoch: int
    step: int
    num_images: int
    """number of images of the step, over all processes"""
    share: Share
    stream: int = 0

    def each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Return the draws for this process's images, [N, ...]. `draw` draws for all images of the step."""
        return draw(self._generator)[self.share.rank :: self.share.num_processes]

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.own_seed)

    @property
    def own_seed(self) -> int:
        """Seed of this step and stream."""
        return seed_of(self.seed, self.epoch, self.step, stream=self.stream)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's generators for layers and transforms, on the CPU and on `device`.

    Not with `torch.manual_seed`, which seeds all kinds of devices: an unused device costs 1.5 ms.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def seed_of(seed: int, epoch: int, step: int, *, stream: int = 0) -> int:
    """Return the seed of one stream of a step."""
    state = np.random.SeedSequence((seed, epoch, step, stream)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
