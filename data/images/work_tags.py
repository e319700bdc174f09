"""CPU time of reading the tags of a TIFF file, and of EXIF, which has the same format."""

import struct

from data.images.budget import Budget

_TAG_SECONDS = 20e-6
_TAG_PAIR_SECONDS = 40e-9
"""Per pair of tags: libtiff sorts all unknown tags again for each unknown tag."""
_VALUE_SECONDS = 3e-6
_FRACTION_SECONDS = 8e-6
_BYTE_SECONDS = 20e-9
_EXIF_SECONDS = 0.5e-6
"""Per byte: Pillow makes a Python object for each fraction of 8 bytes."""
_LIBTIFF_TAGS = 4096
"""libtiff refuses directories with more tags."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes per value of each type."""
_BYTES, _FRACTIONS = {1, 2, 7}, {5, 10}
_DIRECTORIES = {34665, 34853, 40965}
"""Tags that point to another directory, which Pillow reads too: EXIF, GPS, interoperability."""


def count_tags(image: bytes, budget: Budget) -> None:
    """Count the work of reading the tags of the first image in a TIFF file.

    Raises:
        OverBudgetError: more work than allowed.

    """
    order = "<" if image.startswith(b"II") else ">"
    is_big = 43 in (image[2:3] or b"\0") + image[3:4]
    offset = _read(image, order + ("Q" if is_big else "I"), 8 if is_big else 4)
    waiting, seen = [offset], set[int]()
    while waiting:
        offset = waiting.pop()
        if offset is not None and offset not in seen:
            seen.add(offset)
            waiting += _count_directory(image, order, offset, budget, is_big=is_big)


def count_exif(exif: bytes, budget: Budget) -> None:
    """Count the work of reading EXIF, by its size.

    Raises:
        OverBudgetError: more work than allowed.

    """
    budget.spend(len(exif) * _EXIF_SECONDS, "EXIF")


def _count_directory(image: bytes, order: str, start: int, budget: Budget, *, is_big: bool) -> list[int | None]:
    """Count the tags of a directory, and return the offsets of the directories that the tags point to."""
    head, entry = (order + "Q", order + "HHQQ") if is_big else (order + "H", order + "HHII")
    number = _read(image, head, start) or 0
    position, size, left = start + struct.calcsize(head), struct.calcsize(entry), len(image)
    budget.spend(min(number, _LIBTIFF_TAGS) ** 2 * _TAG_PAIR_SECONDS, "tags of a TIFF")
    others: list[int | None] = []
    while number and position + size <= len(image):
        tag, kind, count, value = struct.unpack_from(entry, image, position)
        # Pillow skips a value if the sum of all values exceeds the size of the file.
        count = count if count * _SIZES.get(kind, 0) <= left else 0
        left -= count * _SIZES.get(kind, 0)
        per_value = _BYTE_SECONDS if kind in _BYTES else _FRACTION_SECONDS if kind in _FRACTIONS else _VALUE_SECONDS
        budget.spend(_TAG_SECONDS + count * per_value, "tags of a TIFF")
        if tag in _DIRECTORIES:
            others.append(value)
        number, position = number - 1, position + size
    return others


def _read(image: bytes, kind: str, position: int) -> int | None:
    if position + struct.calcsize(kind) > len(image):
        return None
    value: int = struct.unpack_from(kind, image, position)[0]
    return value
