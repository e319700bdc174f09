"""CPU time of opening an AVIF, counted from its metadata boxes."""

import struct
from collections.abc import Iterator

from data.images.budget import Budget

_ITEM_PAIR_SECONDS = 6e-9
"""Per pair of items: for each item, libavif searches through all items."""
_EXIF_SECONDS = 0.4e-6
"""Per byte of a file with EXIF, which Pillow reads when it opens the file."""
_CONTAINERS = {b"moov": 0, b"trak": 0, b"meta": 4, b"iprp": 0}
"""Boxes that hold boxes, and the number of bytes before the first inner box."""
_ITEM_BYTES = {b"iinf": 20, b"iloc": 6, b"ipma": 3, b"iref": 12, b"iprp": 8}
"""Minimum bytes per item in each of these boxes."""
_MAX_BOXES = 10_000


def is_avif(image: bytes) -> bool:
    """Whether Pillow would take a file for an AVIF."""
    return image[4:8] == b"ftyp"


def count_avif(image: bytes, budget: Budget) -> None:
    """Count the work of opening an AVIF.

    Raises:
        OverBudgetError: more work than allowed.

    """
    num_items = 0
    for number, (kind, size) in enumerate(_boxes(image)):
        num_items += size // _ITEM_BYTES.get(kind, size + 1)
        budget.spend(0.1 * (number >= _MAX_BOXES), "boxes of an AVIF")
    budget.spend(num_items**2 * _ITEM_PAIR_SECONDS, "items of an AVIF")
    if b"Exif" in image:
        budget.spend(len(image) * _EXIF_SECONDS, "EXIF of an AVIF")


def _boxes(image: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield kind and size of each box, including inner boxes."""
    waiting = [(0, len(image))]
    while waiting:
        position, end = waiting.pop()
        while position + 8 <= end:
            size, kind = struct.unpack_from(">I4s", image, position)
            head = 8
            if size == 1 and position + 16 <= end:
                head, size = 16, struct.unpack_from(">Q", image, position + 8)[0]
            size = end - position if size == 0 else min(max(size, head), end - position)
            yield kind, size
            if kind in _CONTAINERS:
                waiting.append((position + head + _CONTAINERS[kind], position + size))
            position += size
