"""Batches straight from the memory-mapped shards. Shapes: N images, B images a batch, S pixels a side, 3 colours."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from core.machine import num_cores
from data.batches.shards import Indices, PreparedImages

MAX_READERS = 8
"""Batches that are read for a GPU at the same time, one by each core: one alone copies less than a GPU trains on."""


class Batch(NamedTuple):
    """What one step learns from, or is measured on."""

    images: torch.Tensor
    """uint8 [B, S, S, 3]"""
    labels: torch.Tensor
    """int64 [B]"""


@dataclass(frozen=True)
class Share:
    """Which images of every batch are this process's: of `num_processes`, each takes every n-th, from `rank` on."""

    rank: int = 0
    num_processes: int = 1


class Batches:
    """The batches of one epoch after another: `images` uint8 [B, S, S, 3] and `labels` int64 [B].

    Which images a batch has follows from `seed`, epoch and step alone; in it they are in the order of the shards, so
    that each shard is read forwards. The last, smaller batch of a shuffled epoch is left out, its images have their
    turn in another epoch; in order, every image comes once.
    """

    def __init__(
        self,
        images: PreparedImages,
        batch_size: int,
        *,
        shuffle_seed: int | None,
        share: Share | None = None,
        device: torch.device | None = None,
        resident: bool = False,
        class_weights: Sequence[float] = (),
    ) -> None:
        """Read batches for `device`.

        Args:
            images: the split.
            batch_size: images a step, over all processes.
            shuffle_seed: None keeps the order.
            share: what this process reads of each batch.
            device: for a GPU, batches lie in pinned memory, and the next ones are read while it computes.
            resident: keep all images in the memory of `device`.
            class_weights: draw an epoch's images with replacement, in proportion to the weight of their class; empty:
                each image once.

        """
        self.images, self.shuffle_seed = images, shuffle_seed
        self.batch_size = min(batch_size, len(images))
        self.epoch = 0
        self._share = share or Share()
        self._start = self._next = 0
        self._to_gpu = device is not None and device.type == "cuda"
        self._resident = _read_all(images, device) if resident else None
        weights = np.asarray(class_weights, dtype=np.float64)[images.labels] if len(class_weights) else None
        self._chances = None if weights is None else weights / weights.sum()

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (rest > 0 and self.shuffle_seed is None)

    def __iter__(self) -> Iterator[Batch]:
        start, self._start = self._start, 0
        order = self._order()
        steps = range(start, len(self))
        for step, batch in zip(steps, self._read(order, steps), strict=True):
            self._next = step + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Name the batch that comes next; Lightning keeps it in its checkpoints."""
        return {"epoch": self.epoch, "next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on in the middle of an epoch."""
        self.epoch, self._start = state["epoch"], state["next"] % len(self)

    def _order(self) -> Indices:
        if self.shuffle_seed is None:
            return np.arange(len(self.images))
        draws = np.random.default_rng([self.shuffle_seed, self.epoch])
        if self._chances is None:
            return draws.permutation(len(self.images))
        return draws.choice(len(self.images), len(self.images), p=self._chances)

    def _read(self, order: Indices, steps: range) -> Iterator[Batch]:
        if self._to_gpu and self._resident is None:
            yield from self._read_ahead(order, steps)
        else:
            yield from (self._gather(self._chosen(order, step)) for step in steps)

    def _read_ahead(self, order: Indices, steps: range) -> Iterator[Batch]:
        num_readers = min(MAX_READERS, num_cores())
        with ThreadPoolExecutor(num_readers) as readers:
            ahead: deque[Future[Batch]] = deque()
            for step in steps:
                ahead.append(readers.submit(self._gather_pinned, self._chosen(order, step)))
                if len(ahead) > num_readers:
                    yield ahead.popleft().result()
            yield from (batch.result() for batch in ahead)

    def _chosen(self, order: Indices, step: int) -> Indices:
        """Which images of a step's batch are this process's, in the order of the shards."""
        batch = np.sort(order[step * self.batch_size : (step + 1) * self.batch_size])
        return batch[self._share.rank :: self._share.num_processes]

    def _gather(self, indices: Indices) -> Batch:
        labels = torch.from_numpy(self.images.labels[indices])
        if self._resident is None:
            return Batch(torch.from_numpy(self.images.gather(indices)), labels)
        return Batch(self._resident[torch.from_numpy(indices).to(self._resident.device)], labels)

    def _gather_pinned(self, indices: Indices) -> Batch:
        images, labels = self._gather(indices)
        return Batch(images.pin_memory(), labels.pin_memory())


def _read_all(images: PreparedImages, device: torch.device | None) -> torch.Tensor:
    return torch.from_numpy(images.gather(np.arange(len(images)))).to(device or "cpu")
