"""Estimates how much memory the reading of an image takes, before it is read.

An image of 50 million pixels, too large for a small container, may come as a file of 450 bytes.
"""

from PIL import Image

from data.images.decode import REDUCTION, Preprocessing

_BY_MODE = {"1": 6, "L": 2, "P": 6, "RGB": 5, "I": 22, "F": 22}
_OTHER_MODE = 9
_TRANSPARENT = {"RGBA": 9, "P": 10, "RGB": 13, "LA": 13}
_OTHER_TRANSPARENT = 18
"""Peak bytes per pixel: Pillow's own image, with 4 bytes for RGB, and the copies that `data.images.decode` makes on the
way to 8 bits. Measured on images of 9 million pixels, rounded up."""

_BY_FORMAT = {"AVIF": 9, "JPEG": 3, "JPEG2000": 24, "TIFF": 8, "WEBP": 13}
"""Additional bytes per pixel of each format's decoder."""

_PROGRESSIVE = 6
"""Bytes per pixel of a progressive JPEG's coefficients, all of which are held even for a reduced read."""

_FIXED = 500_000


def footprint(picture: Image.Image, spec: Preprocessing) -> int:
    """Estimate an upper bound of the peak memory, in bytes, of reading an opened image."""
    pixels = picture.width * picture.height
    if picture.has_transparency_data:
        cost = _TRANSPARENT.get(picture.mode, _OTHER_TRANSPARENT)
    else:
        cost = _BY_MODE.get(picture.mode, _OTHER_MODE)
    cost += _BY_FORMAT.get(picture.format or "", 0)
    if picture.format == "JPEG":
        held = pixels * _PROGRESSIVE if "progressive" in picture.info else 0
        return _FIXED + held + pixels * cost // _reduction(picture, spec) ** 2
    return _FIXED + pixels * cost


def _reduction(picture: Image.Image, spec: Preprocessing) -> int:
    """Factor by which libjpeg reduces a JPEG while decoding."""
    wanted = REDUCTION * spec.size
    room = min(picture.width, picture.height) // wanted
    return next((scale for scale in (8, 4, 2) if scale <= room), 1)
