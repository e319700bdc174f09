"""CPU time of files that are lists of small blocks: PNG, GIF, icons, and the header of a PPM."""

import re
import struct

from data.images.budget import Budget
from data.images.work_tags import count_exif

PNG = b"\x89PNG\r\n\x1a\n"
ICON = b"\0\0\1\0"

_CHUNK_SECONDS = 10e-6
"""Per chunk of a PNG, which Pillow reads in Python."""
_COMPRESSED = {b"zTXt", b"iTXt", b"iCCP"}
_MAX_TEXT = 2**20
"""Maximum bytes that Pillow unpacks from a chunk."""
_MAX_RATIO = 1032
"""Maximum compression ratio of deflate."""
_UNPACKED_SECONDS = 4.5e-9

_BLOCK_SECONDS = 2e-6
"""Per block of a GIF."""
_JUNK_SECONDS = 0.5e-6
"""Per byte between the blocks of a GIF."""
_GIF_BLOCK = re.compile(rb"[!,;]")

_ENTRY_SECONDS = 15e-6
_ICON_PIXEL_SECONDS = 150e-9

_HEAD_SECONDS = 2e-6
"""Per byte of the header of a PPM, which Pillow reads in Python."""
_HEAD_WORD = re.compile(rb"#[^\r\n]*|[^\s#]{1,11}")


def count_png(image: bytes, budget: Budget, start: int = 0) -> None:
    """Count the work of reading the chunks of the PNG at `start`, without the pixels.

    Raises:
        OverBudgetError: more work than allowed.

    """
    position = start + len(PNG)
    while position + 8 <= len(image):
        length, kind = struct.unpack_from(">I4s", image, position)
        budget.spend(_CHUNK_SECONDS, "chunks of a PNG")
        if kind in _COMPRESSED:
            budget.spend(min(_MAX_TEXT, _MAX_RATIO * length) * _UNPACKED_SECONDS, "compressed text of a PNG")
        elif kind == b"eXIf":
            count_exif(image[position + 8 : position + 8 + length], budget)
        elif kind == b"IEND":
            return
        position += 12 + length


def count_gif(image: bytes, budget: Budget) -> None:
    """Count the work of finding the first frame of a GIF.

    Raises:
        OverBudgetError: more work than allowed.

    """
    flags = image[10] if len(image) > 10 else 0
    position = 13 + (3 << ((flags & 7) + 1) if flags & 128 else 0)
    while match := _GIF_BLOCK.search(image, position):
        budget.spend((match.start() - position) * _JUNK_SECONDS + _BLOCK_SECONDS, "blocks of a GIF")
        if match[0] != b"!":
            return
        position = match.end() + 1
        while position < len(image) and image[position]:
            budget.spend(_BLOCK_SECONDS, "blocks of a GIF")
            position += 1 + image[position]
        position += 1


def count_icon(image: bytes, budget: Budget) -> None:
    """Count the work of opening an icon file, which Pillow decodes at once.

    Raises:
        OverBudgetError: more work than allowed.

    """
    budget.spend(icon_pixels(image) * _ICON_PIXEL_SECONDS, "pixels of an icon")
    offsets = set()
    for start in _icon_entries(image):
        budget.spend(_ENTRY_SECONDS, "entries of an icon")
        offsets.add(struct.unpack_from("<I", image, start + 12)[0])
    for offset in offsets:
        if image.startswith(PNG, offset):
            count_png(image, budget, offset)


def icon_pixels(image: bytes) -> int:
    """Count the pixels of the largest picture in an icon file, which Pillow decodes when opening; 0 for other files."""
    if not image.startswith(ICON) or len(image) < 6:
        return 0
    largest = 0
    for start in _icon_entries(image):
        (offset,) = struct.unpack_from("<I", image, start + 12)
        if image.startswith(PNG, offset) and len(image) >= offset + 24:
            width, height = struct.unpack_from(">II", image, offset + 16)
        elif len(image) >= offset + 12:
            width, height = map(abs, struct.unpack_from("<ii", image, offset + 4))
        else:
            continue
        largest = max(largest, width * height)
    return largest


def _icon_entries(image: bytes) -> range:
    if len(image) < 6:
        return range(0)
    return range(6, min(6 + 16 * struct.unpack_from("<H", image, 4)[0], len(image) - 15), 16)


def count_ppm_head(image: bytes, budget: Budget) -> None:
    """Count the work of reading the header of a PPM, byte by byte.

    Raises:
        OverBudgetError: more work than allowed.

    """
    num_words = 3 if image[1:2] in b"14" else 4
    position = 0
    for match in _HEAD_WORD.finditer(image):
        budget.spend((match.end() - position) * _HEAD_SECONDS, "the head of a PPM")
        position = match.end()
        num_words -= not match[0].startswith(b"#")
        if not num_words:
            return
