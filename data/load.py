"""Batches straight from the memory-mapped shards. Shapes: B images a batch, S pixels a side, 3 colours."""

from collections.abc import Iterator

import numpy as np
import torch

from data.shards import Indices, PreparedImages

Batch = tuple[torch.Tensor, torch.Tensor]


class Batches:
    """The batches of one epoch after another: `images` uint8 [B, S, S, 3] and `labels` int64 [B].

    The order of epoch e follows from `seed` and e alone. The last, smaller batch of a shuffled epoch is left out, its
    images have their turn in another epoch; in order, every image comes once.
    """

    def __init__(self, images: PreparedImages, batch_size: int, *, shuffle_seed: int | None) -> None:
        """Shuffle by `shuffle_seed`, or keep the order where that is None."""
        self.images = images
        self.batch_size = min(batch_size, len(images))
        self.shuffle_seed = shuffle_seed
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (rest > 0 and self.shuffle_seed is None)

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()
        for batch in range(len(self)):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield torch.from_numpy(self.images.gather(indices)), torch.from_numpy(self.images.labels[indices])

    def _order(self) -> Indices:
        if self.shuffle_seed is None:
            return np.arange(len(self.images))
        return np.random.default_rng([self.shuffle_seed, self.epoch]).permutation(len(self.images))
