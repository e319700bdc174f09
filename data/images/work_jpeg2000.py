"""CPU time of decoding a JPEG 2000, counted from its headers."""

import struct
from dataclasses import dataclass, field

from data.images.budget import Budget

CODESTREAM = b"\xff\x4f\xff\x51"
_SIZE, _STYLE, _STYLE_OF_ONE, _QUANTIZATION, _QUANTIZATION_OF_ONE = 0xFF51, 0xFF52, 0xFF53, 0xFF5C, 0xFF5D
_ORDER, _TILE, _DATA = 0xFF5F, 0xFF90, 0xFF93

_BYTE_SECONDS = 200e-9
_SAMPLE_SECONDS = 30e-9
_PLANE_SECONDS = 6e-9
"""Per sample and bit plane."""
_TILE_SECONDS = 60e-6
_PACKET_SECONDS = 3e-6
_BLOCK_SECONDS = 2e-6
_MAX_PLANES = 31
"""openjpeg refuses more planes."""


@dataclass
class _Header:
    """Content of the markers of a codestream. Of several markers, the one with the most work counts."""

    width: int = 0
    height: int = 0
    tile: tuple[int, int] = (1, 1)
    components: int = 0
    planes: int = 1
    layers: int = 1
    orders: int = 1
    tile_parts: int = 0
    precincts: list[tuple[int, int]] = field(default_factory=list)
    """exponents of width and height, for each resolution"""
    levels: int = 0
    smallest_block: int = 4096


def count_jpeg2000(image: bytes, budget: Budget) -> None:
    """Count the work of decoding a JPEG 2000.

    Raises:
        OverBudgetError: more work than allowed.

    """
    start = image.find(CODESTREAM)
    if start < 0:
        return
    header = _Header()
    position, tile_start, tile_length = start + 2, 0, 0
    while position + 4 <= len(image):
        marker, length = struct.unpack_from(">HH", image, position)
        body = image[position + 4 : position + 2 + length]
        if marker == _TILE:
            header.tile_parts += 1
            budget.spend(_TILE_SECONDS, "tiles of a JPEG 2000")
            tile_start, tile_length = position, int.from_bytes(body[2:6], "big")
        elif marker == _DATA:
            if not tile_length:
                break  # the last tile extends to the end
            position = max(tile_start + tile_length, position + 2)
            continue
        else:
            _note(header, marker, body)
        if length < 2:
            break
        position += 2 + length
    _spend(header, len(image) - start, budget)


def _note(header: _Header, marker: int, body: bytes) -> None:
    """Read the values of a marker that decide the work."""
    if marker == _SIZE and len(body) >= 36:
        right, bottom, left, top, across, down, _, _, components = struct.unpack_from(">2x8IH", body)
        header.width, header.height = max(0, right - left), max(0, bottom - top)
        header.tile, header.components = (max(1, across), max(1, down)), components
    elif marker == _STYLE and len(body) >= 10:
        header.layers = max(header.layers, int.from_bytes(body[2:4], "big"))
        _note_style(header, body[0], body[5:])
    elif marker == _STYLE_OF_ONE and len(body) >= 8:
        wide = 2 if header.components > 256 else 1
        _note_style(header, body[wide], body[wide + 1 :])
    elif marker in (_QUANTIZATION, _QUANTIZATION_OF_ONE):
        body = body if marker == _QUANTIZATION else body[2 if header.components > 256 else 1 :]
        if body:
            # The exponent has 5 bits, in a byte of its own or before 11 bits of mantissa.
            step = 1 if not body[0] & 31 else 2
            exponents = [value >> 3 for value in body[1::step]]
            header.planes = max(header.planes, min(_MAX_PLANES, (body[0] >> 5) + max(exponents, default=0)))
    elif marker == _ORDER:
        header.orders += len(body) // 7


def _note_style(header: _Header, style: int, body: bytes) -> None:
    """Read levels, blocks and precincts from the parameters of a coding style: SPcod or SPcoc."""
    if len(body) < 5:
        return
    header.levels = max(header.levels, min(body[0], 32))
    header.smallest_block = min(header.smallest_block, 1 << ((body[1] & 15) + (body[2] & 15) + 4))
    if style & 1:
        header.precincts = [(value & 15, value >> 4) for value in body[5:]] + header.precincts


def _spend(header: _Header, num_bytes: int, budget: Budget) -> None:
    samples = header.width * header.height * header.components
    per_sample = _SAMPLE_SECONDS + header.planes * _PLANE_SECONDS + _BLOCK_SECONDS / header.smallest_block
    budget.spend(num_bytes * _BYTE_SECONDS + samples * per_sample, f"{samples:,} samples of a JPEG 2000")
    tiles = -(-header.width // header.tile[0]) * -(-header.height // header.tile[1])
    budget.spend(tiles * header.components * _TILE_SECONDS / 3, "tiles of a JPEG 2000")
    across, down = (min(side, tile) for side, tile in zip((header.width, header.height), header.tile, strict=True))
    finest = min(header.precincts, key=sum, default=(15, 15))
    precincts = sum(
        -(-(across >> level) // (1 << finest[0]) or 1) * -(-(down >> level) // (1 << finest[1]) or 1)
        for level in range(header.levels + 1)
    )
    packets = tiles * header.components * precincts * header.layers * header.orders
    budget.spend(packets * _PACKET_SECONDS, "packets of a JPEG 2000")
