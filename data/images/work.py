"""Estimates how much CPU time the reading of an image takes, before it is read.

In some formats, a small file may take minutes to decode: scans that refine the same pixels again and again, compressed
text that nobody reads, comments between numbers. Each count is an upper bound. The costs were measured with Pillow 13
and simplejpeg 1.9 on one core of a virtual machine (AMD EPYC), and raised by at least one half.
"""

from typing import Any

from PIL import Image, TiffImagePlugin

from data.images.budget import Budget
from data.images.work_avif import count_avif, is_avif
from data.images.work_blocks import ICON, count_gif, count_icon, count_png, count_ppm_head
from data.images.work_jpeg import count_jpeg
from data.images.work_jpeg2000 import count_jpeg2000
from data.images.work_tags import count_exif, count_tags

_PIXEL_SECONDS = {"AVIF": 300e-9, "JPEG": 0.0, "JPEG2000": 20e-9, "MPO": 0.0, "WEBP": 180e-9}
_OTHER_PIXEL_SECONDS = 60e-9
"""Per pixel, with the conversion to 8 bits. `count_jpeg` counts all work of a JPEG."""
_BYTE_SECONDS = 15e-9
_SLOW_BYTE_SECONDS = 150e-9
_RUN_PIXEL_SECONDS, _RUN_BYTE_SECONDS = 220e-9, 500e-9
"""Of a run-length encoded BMP, which Pillow reads in Python."""
_BIT_SECONDS, _NUMBER_BYTE_SECONDS, _NUMBER_SECONDS, _COMMENT_SECONDS = 60e-9, 450e-9, 1.5e-6, 150e-6
"""Of a PPM in text, or with scaled levels, which Pillow reads in Python. Pillow copies the data for each comment."""
_STRIP_SECONDS = 15e-6
_PROFILE_SECONDS = 0.03
"""Of building a colour table."""
_JPEG_COMPRESSIONS, _LZMA = {"jpeg", "tiff_jpeg"}, "lzma"


def count_opening(image: bytes, budget: Budget) -> None:
    """Count the work of opening an image file. For a JPEG, also count the work of decoding.

    Raises:
        OverBudgetError: more work than allowed.

    """
    match image[:4]:
        case b"\x89PNG":
            count_png(image, budget)
        case b"GIF8":
            count_gif(image, budget)
        case _ if image.startswith(b"\xff\xd8\xff"):
            count_jpeg(image, budget)
        case _ if image.startswith(ICON):
            count_icon(image, budget)
        case _ if image[:2] in (b"II", b"MM"):
            count_tags(image, budget)
        case _ if is_avif(image):
            count_avif(image, budget)
        case _ if image.startswith(b"P"):
            count_ppm_head(image, budget)


def count_reading(image: bytes, picture: Image.Image, budget: Budget) -> None:
    """Count the work of reading the pixels of an opened image.

    Args:
        image: content of the file.
        picture: the opened image.
        budget: CPU time that may be spent.

    Raises:
        OverBudgetError: more work than allowed.

    """
    kind, pixels = picture.format or "", picture.width * picture.height
    if kind in ("JPEG", "MPO"):
        return
    what = f"{pixels:,} pixels of a {kind}"
    budget.spend(pixels * _PIXEL_SECONDS.get(kind, _OTHER_PIXEL_SECONDS) + len(image) * _BYTE_SECONDS, what)
    if picture.mode == "LAB":
        budget.spend(_PROFILE_SECONDS, "colours in Lab")
    if kind in ("WEBP", "AVIF"):
        count_exif(picture.info.get("exif") or b"", budget)
    elif kind == "JPEG2000":
        count_jpeg2000(image, budget)
    elif isinstance(picture, TiffImagePlugin.TiffImageFile):
        _count_tiff(image, picture, budget)
    else:
        _count_in_python(image, picture, pixels, budget, what)


def _count_in_python(image: bytes, picture: Image.Image, pixels: int, budget: Budget, what: str) -> None:
    """Count the formats that Pillow decodes in Python."""
    decoder = next((tile[0] for tile in getattr(picture, "tile", ())), "")
    if decoder == "bmp_rle":
        budget.spend(pixels * _RUN_PIXEL_SECONDS + len(image) * _RUN_BYTE_SECONDS, what + " in runs")
    elif decoder == "ppm_plain":
        per_byte = _BIT_SECONDS if picture.mode == "1" else _NUMBER_BYTE_SECONDS
        budget.spend(len(image) * per_byte, what + " in text")
        budget.spend(image.count(b"#") * _COMMENT_SECONDS, "comments in a PPM")
    elif decoder == "ppm":
        budget.spend(min(len(image), pixels * len(picture.getbands())) * _NUMBER_SECONDS, what + " of unusual levels")


def _count_tiff(image: bytes, picture: TiffImagePlugin.TiffImageFile, budget: Budget) -> None:
    """Count the strips or tiles of a TIFF, which may be more and larger than the image needs."""
    tags: Any = picture.tag_v2
    starts = _numbers(tags.get(TiffImagePlugin.STRIPOFFSETS) or tags.get(TiffImagePlugin.TILEOFFSETS))
    sizes = _numbers(tags.get(TiffImagePlugin.STRIPBYTECOUNTS) or tags.get(TiffImagePlugin.TILEBYTECOUNTS))
    budget.spend(len(starts) * _STRIP_SECONDS, f"{len(starts):,} strips or tiles of a TIFF")
    compression = picture.info.get("compression")
    per_byte = _SLOW_BYTE_SECONDS if compression == _LZMA else _BYTE_SECONDS
    budget.spend(sum(min(size, len(image)) for size in sizes) * per_byte, "bytes of the strips of a TIFF")
    tile = _numbers(tags.get(TiffImagePlugin.TILEWIDTH))[:1] + _numbers(tags.get(TiffImagePlugin.TILELENGTH))[:1]
    if len(tile) == 2 and tile[0] and tile[1]:
        padded = -(-picture.width // tile[0]) * -(-picture.height // tile[1]) * tile[0] * tile[1]
        budget.spend(padded * _OTHER_PIXEL_SECONDS, f"{padded:,} pixels of the tiles of a TIFF")
    if compression in _JPEG_COMPRESSIONS:
        for start, size in zip(starts, sizes, strict=False):
            count_jpeg(image, budget, start, start + size)


def _numbers(value: Any) -> tuple[int, ...]:
    """Return the integers in a tag. A file may also store text or fractions."""
    values = value if isinstance(value, tuple) else (value,)
    return tuple(number for number in values if isinstance(number, int) and number >= 0)
