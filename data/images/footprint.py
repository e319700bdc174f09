"""How much memory the reading of an image takes, told before it is read.

A small container must not begin what it cannot hold, and 450 bytes may stand for 50 million pixels.
"""

from PIL import Image

from data.images.decode import REDUCTION, Preprocessing

_BY_MODE = {"1": 6, "L": 2, "P": 6, "RGB": 5, "I": 22, "F": 22}
_OTHER_MODE = 9
_TRANSPARENT = {"RGBA": 9, "P": 10, "RGB": 13, "LA": 13}
_OTHER_TRANSPARENT = 18
"""Bytes for each pixel at the highest: what Pillow holds, which keeps RGB in 4, and the copies that
`data.images.decode` makes on the way to 8 bits. Measured on images of 9 million pixels, rounded up."""

_BY_FORMAT = {"AVIF": 9, "JPEG": 3, "JPEG2000": 24, "TIFF": 8, "WEBP": 13}
"""Bytes for each pixel that the decoder of a format takes besides."""

_PROGRESSIVE = 6
"""Bytes for each pixel of a progressive JPEG, at whatever size it is read: all its coefficients are held."""

_FIXED = 500_000


def footprint(picture: Image.Image, spec: Preprocessing) -> int:
    """Estimate, from above, the bytes that reading an opened image takes at the highest."""
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
    """By how much libjpeg makes a JPEG smaller while it reads it."""
    wanted = REDUCTION * spec.size
    room = min(picture.width, picture.height) // wanted
    return next((scale for scale in (8, 4, 2) if scale <= room), 1)
