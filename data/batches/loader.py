"""Batches from the memory-mapped shards. Shapes: N images, B images per batch, S pixels per side, 3 colours."""

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
"""Maximum number of batches read ahead for a GPU, one per core. One core copies less than a GPU trains on."""


class Batch(NamedTuple):
    """Batch of one step, in training or evaluation."""

    images: torch.Tensor
    """uint8 [B, S, S, 3]"""
    labels: torch.Tensor
    """int64 [B]"""


@dataclass(frozen=True)
class Share:
    """Share of a process in every batch: every `num_processes`-th image, from `rank` on."""

    rank: int = 0
    num_processes: int = 1


class Batches:
    """Iterable over the batches of an epoch: `images` uint8 [B, S, S, 3] and `labels` int64 [B].

    The images of a batch depend only on `shuffle_seed`, epoch and step. They are in the order of the shards, so that
    each shard is read forwards. A shuffled epoch leaves out the last, smaller batch. In order, every image comes once.
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
            batch_size: images per step, over all processes.
            shuffle_seed: None keeps the order.
            share: share of this process in each batch.
            device: for a GPU, batches are in pinned memory, and the next batches are read while the GPU computes.
            resident: keep all images in the memory of `device`.
            class_weights: draw an epoch's images with replacement, in proportion to the weights of their classes;
                empty: each image once.

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
        """Return the position of the next batch, for Lightning's checkpoints."""
        return {"epoch": self.epoch, "next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at the position, in the middle of an epoch."""
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
        """Return the images of this process in a step's batch, in the order of the shards."""
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
