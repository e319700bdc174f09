"""Finds prepared images that look alike, whatever their split."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.images.decode import Pixels
from data.preparing.array_file import map_array
from data.preparing.shard import Part, Row
from data.quality.perceptual_hash import near_groups
from data.splits import Split


class Kept(NamedTuple):
    """Usable image, and the place of its pixels."""

    row: Row
    split: Split
    shard: str
    position: int
    """in the shard's prepared array"""


class Lookalikes(NamedTuple):
    """Groups of images that look alike, by their checksums (sha256)."""

    groups: list[list[str]]
    num_unchecked: int
    """number of pairs that may look alike, but were not compared, because there are too many"""


def kept_images(parts: Sequence[Part]) -> Iterator[Kept]:
    """List all usable images."""
    for part in parts:
        for split, rows in part.rows.items():
            yield from (Kept(row, split, part.name, position) for position, row in enumerate(rows))


def find_lookalikes(parts: Sequence[Part], prepared: Path, size: int) -> Lookalikes:
    """Compare all images. Images with equal bytes are compared once.

    The result does not depend on the current splits of the images.

    Args:
        parts: the prepared parts.
        prepared: folder of the arrays.
        size: pixels per side.

    """
    by_bytes: dict[str, Kept] = {}
    for part in parts:
        for image in _as_drawn(part):
            by_bytes.setdefault(image.row.sha256, image)
    images = list(by_bytes.values())
    hashes = np.array([image.row.look for image in images], dtype=np.uint64)
    groups, num_unchecked = near_groups(hashes, _reader(images, prepared, size))
    return Lookalikes([[images[index].row.sha256 for index in group] for group in groups], num_unchecked)


def _as_drawn(part: Part) -> Iterable[Kept]:
    """List the usable images of a part, in the order before images were moved to other splits."""
    images = kept_images([part])
    if not part.moved:
        return images
    return sorted(images, key=lambda image: (part.moved.get(image.row.origin, image.split), image.row.origin))


def _reader(images: Sequence[Kept], prepared: Path, size: int) -> Callable[[Sequence[int]], Pixels]:
    """Return a function that reads the prepared pixels of some images."""

    def read(indices: Sequence[int]) -> Pixels:
        pixels = np.empty((len(indices), size, size, 3), dtype=np.uint8)
        num_read = 0
        for (split, shard), some in groupby((images[index] for index in indices), lambda one: (one.split, one.shard)):
            positions = [image.position for image in some]
            array = map_array(prepared / f"{split}-{shard}.npy", (size, size, 3))
            pixels[num_read : num_read + len(positions)] = array[positions]
            num_read += len(positions)
        return pixels

    return read
