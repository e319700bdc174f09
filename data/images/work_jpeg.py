"""CPU time of decoding a JPEG, counted from its markers.

A progressive file of 100 KB may hold thousands of scans, and each scan visits every block of 8 x 8 coefficients again.
"""

import re
import struct
from typing import NamedTuple

from data.images.budget import Budget

_START, _END, _SCAN, _TABLES, _RESTART = 0xD8, 0xD9, 0xDA, 0xC4, 0xDD
_FRAMES = {*range(0xC0, 0xD0)} - {_TABLES, 0xC8, 0xCC}
_ARITHMETIC = range(0xC9, 0xD0)
_ALONE = {0x01, *range(0xD0, 0xDA)}
"""Markers without a length."""
_EXIF = 0xE1

_HEADER = re.compile(rb"\xff([^\x00\xff])")
_AFTER_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")

_SEGMENT_SECONDS = 20e-6
"""Per segment, which Pillow reads in Python."""
_PADDING_SECONDS = 1e-6
"""Per byte between segments, which Pillow skips in Python."""
_EXIF_SECONDS = 0.4e-6
"""Per byte of EXIF: Pillow makes a Python object for each fraction."""
_SCAN_SECONDS = 20e-6
_BLOCK_SECONDS, _PROGRESSIVE_BLOCK_SECONDS, _ARITHMETIC_BLOCK_SECONDS = 40e-9, 150e-9, 800e-9
"""Per block and scan. A refining scan of an empty block takes 105 ns."""
_BYTE_SECONDS = 15e-9
_PIXEL_SECONDS = 1.5e-9
"""Per pixel and component: transform, upsampling and colour conversion."""
_ARITHMETIC_BYTE_SECONDS = 80e-9
_PASSES = 2
"""simplejpeg and then Pillow decode a damaged file."""


class _Frame(NamedTuple):
    """Content of the marker SOF."""

    pixels: int
    blocks: dict[int, int]
    """number of blocks of each component, by the component's identifier"""
    is_arithmetic: bool
    is_progressive: bool


def count_jpeg(image: bytes, budget: Budget, start: int = 0, end: int | None = None) -> None:
    """Count the work of decoding the JPEG in the bytes from `start` to `end`.

    Most JPEGs have one sequential scan. They are read only up to this scan.

    Raises:
        OverBudgetError: more work than allowed.

    """
    end = len(image) if end is None else min(end, len(image))
    position, marker_after, frame, num_scans = start, _HEADER, None, 0
    while match := marker_after.search(image, position, end):
        if not num_scans:
            budget.spend((match.start() - position) * _PADDING_SECONDS, "padding between the segments of a JPEG")
        marker, position = match[1][0], match.end()
        budget.spend(_SEGMENT_SECONDS, "segments of a JPEG")
        if marker == _END and num_scans:
            return
        if marker in _ALONE and marker != _SCAN:
            continue
        length = _u16(image, position)
        if marker in _FRAMES and frame is None:
            frame = _read_frame(image, position, marker)
        elif marker == _EXIF:
            budget.spend(length * _EXIF_SECONDS, "EXIF of a JPEG")
        elif marker == _SCAN:
            if frame is None:
                return  # decoders stop here
            num_scans += 1
            if num_scans == 1:
                _spend_once(end - position, frame, budget)
            if _spend_on_scan(image, position, frame, budget, num_scans):
                return
            marker_after = _AFTER_SCAN
        position += length


def _spend_once(num_bytes: int, frame: _Frame, budget: Budget) -> None:
    """Count the work that is done once: the bytes of all scans, and the conversion of coefficients to pixels."""
    per_byte = _ARITHMETIC_BYTE_SECONDS if frame.is_arithmetic else _BYTE_SECONDS
    pixels = frame.pixels * len(frame.blocks) * _PIXEL_SECONDS
    budget.spend(_PASSES * (num_bytes * per_byte + pixels), f"{frame.pixels:,} pixels of a JPEG")


def _spend_on_scan(image: bytes, position: int, frame: _Frame, budget: Budget, number: int) -> bool:
    """Count one scan. Returns whether the decoder stops after the scan, because it holds all components."""
    num_components = image[position + 2] if position + 2 < len(image) else 0
    names = image[position + 3 : position + 3 + 2 * num_components : 2]
    blocks = sum(frame.blocks.get(name, 0) for name in names)
    seconds = _PROGRESSIVE_BLOCK_SECONDS if frame.is_progressive else _BLOCK_SECONDS
    seconds = _ARITHMETIC_BLOCK_SECONDS if frame.is_arithmetic else seconds
    budget.spend(_PASSES * (_SCAN_SECONDS + blocks * seconds), f"{number:,} scans of a JPEG or more")
    return not frame.is_progressive and num_components >= len(frame.blocks)


def _read_frame(image: bytes, position: int, marker: int) -> _Frame | None:
    """Read size and components. Returns None if the frame is truncated or empty, which no decoder accepts."""
    head = image[position : position + 8]
    if len(head) < 8:
        return None
    height, width, num_components = struct.unpack(">HHB", head[3:8])
    components = image[position + 8 : position + 8 + 3 * num_components]
    samplings = [(value >> 4 or 1, value & 15 or 1) for value in components[1::3]]
    if not samplings or len(components) < 3 * num_components:
        return None
    widest, highest = (max(sampling[axis] for sampling in samplings) for axis in (0, 1))
    num_units = -(-width // (8 * widest)) * -(-height // (8 * highest))
    blocks: dict[int, int] = {}
    for name, (across, down) in zip(components[::3], samplings, strict=True):
        blocks[name] = blocks.get(name, 0) + num_units * across * down
    is_progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
    return _Frame(64 * num_units * widest * highest, blocks, marker in _ARITHMETIC, is_progressive)


def _u16(image: bytes, position: int) -> int:
    return int.from_bytes(image[position : position + 2], "big")
