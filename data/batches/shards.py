"""Prepared splits, memory-mapped. Shapes: B images per batch, S pixels per side, 3 colours."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.checksum import file_checksum
from core.errors import UserError
from core.machine import num_cores
from data.images.decode import Pixels
from data.manifest import DataManifest, Shard, labels_file
from data.preparing.array_file import map_array
from data.splits import Split

Indices = npt.NDArray[np.int64]


class PreparedImages:
    """Split of a prepared data set. The memory-mapped shards act as one array of images."""

    def __init__(self, prepared: Path, manifest: DataManifest, split: Split) -> None:
        """Map the shards of `split`. Only the labels are read.

        Raises:
            UserError: a file is missing or truncated, or labels and images do not belong together.

        """
        shards = [shard for shard in manifest.shards if shard.split == split]
        try:
            square = (manifest.size, manifest.size, 3)
            self._shards = [map_array(prepared / shard.name, square) for shard in shards]
            self.labels: Indices = np.load(prepared / labels_file(split))
            counts = np.bincount(self.labels, minlength=len(manifest.classes)).tolist()
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(prepared, str(error)) from None
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        if self._starts[-1] != len(self) or counts != [manifest.splits[split][name] for name in manifest.classes]:
            raise _damaged(prepared, f"images, labels and manifest of {split} do not belong together")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_bytes(self) -> int:
        """Size of all pixels in memory."""
        return sum(shard.nbytes for shard in self._shards)

    def gather(self, indices: Indices) -> Pixels:
        """Copy images, in the order of `indices`, into one array, uint8 [B, S, S, 3].

        Ascending indices are fastest, because then each shard fills one piece of the array in a single copy.
        """
        order = np.argsort(indices, kind="stable")
        ascending = indices[order]
        images = np.empty((len(indices), *self._shards[0].shape[1:]), dtype=np.uint8)
        edges = np.searchsorted(ascending, self._starts)
        for shard in np.flatnonzero(edges[1:] > edges[:-1]):
            piece = slice(edges[shard], edges[shard + 1])
            # Mode "raise" would copy through a buffer. The indices are known to be in range.
            self._shards[shard].take(ascending[piece] - self._starts[shard], axis=0, out=images[piece], mode="clip")
        if np.array_equal(ascending, indices):
            return images
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return images[back]


def _damaged(prepared: Path, what: str) -> UserError:
    return UserError(f"{prepared} is damaged ({what}): prepare the images again with `convoy data prepare`")


def verify(prepared: Path, manifest: DataManifest) -> None:
    """Compare all shards with the checksums of the manifest.

    Raises:
        UserError: a shard is missing, truncated or altered. The message names the first one.

    """

    def is_intact(shard: Shard) -> bool:
        path = prepared / shard.name
        return path.is_file() and file_checksum(path) == shard.checksum

    with ThreadPoolExecutor(num_cores()) as pool:
        for shard, intact in zip(manifest.shards, pool.map(is_intact, manifest.shards), strict=True):
            if not intact:
                raise UserError(
                    f"{prepared / shard.name} is missing or was altered after it was prepared: "
                    "prepare it again with `convoy data prepare`"
                )


def center_crop(images: Pixels, size: int) -> Pixels:
    """Crop the centre of images [N, S, S, 3] to [N, size, size, 3]."""
    start = (images.shape[1] - size) // 2
    return np.ascontiguousarray(images[:, start : start + size, start : start + size])
