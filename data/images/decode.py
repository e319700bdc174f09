import hashlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import BaseModel, ConfigDict

from core.errors import one_line
from data.images.budget import DEFAULT_SECONDS, Budget, OverBudgetError
from data.images.work import count_opening, count_reading

Pixels = npt.NDArray[np.uint8]

DECODERS = ("pillow", "simplejpeg")
"""Packages on whose versions the pixels depend."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB", "ICO", "PCX", "TGA")
"""Most common first. Other formats of Pillow are left out: some start other programs (EPS) or hold documents."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that turns an image upright, by EXIF orientation."""

_SWAPPING = {_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8]}
_FROM_THE_RIGHT = {_TURNS[2], _TURNS[3], _TURNS[6], _TURNS[7]}
_FROM_THE_BOTTOM = {_TURNS[3], _TURNS[4], _TURNS[7], _TURNS[8]}
"""Turns that swap rows and columns; turns after which the last column, or the last row, is the first."""

BROKEN = (OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError,
          AttributeError, AssertionError, MemoryError, struct.error, zlib.error)  # fmt: skip
"""Exceptions that Pillow's plugins raise for hostile files."""


REDUCTION = 2
"""A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if each side keeps this many times the wanted pixels."""

Span = tuple[float, float]
"""Start and end of a side, in pixels."""


class DecodeError(Exception):
    """The bytes are no usable image. The message gives the reason in a few words, without paths."""


class TooLargeError(DecodeError):
    """The image has more pixels, or takes more CPU time or memory, than allowed. It was not decoded."""


class Normalization(BaseModel):
    """Maps pixels to (pixel / 255 - mean) / std, for red, green and blue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Preprocessing(BaseModel):
    """How image bytes become a network's input, in preparation, evaluation and the endpoint.

    The shorter side is resized to `size`, and the centre square is kept, as in section 2 of the AlexNet paper. The
    input is the centre `crop` pixels of this square.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    crop: int
    max_pixels: int
    normalization: Normalization | None = None
    """part of the exported graph; None during preparation"""

    @property
    def hash(self) -> str:
        """Identifier of this preprocessing, equal only for equal values."""
        return hashlib.sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()[:12]


def decode(image: bytes, spec: Preprocessing, max_seconds: float = DEFAULT_SECONDS) -> Pixels:
    """Decode the bytes of an image file to pixels of shape [crop, crop, 3]. Thread-safe.

    EXIF orientation is applied. Transparency is laid over white. Samples of more than 8 bits are scaled to 8. Of an
    animation, the first frame is decoded.

    A JPEG whose shorter side is at least 4 times `spec.size` is decoded at 1/2, 1/4 or 1/8, by libjpeg's smaller
    transforms, to at least twice `spec.size`. For 205 photographs with a shorter side of 256, decoded to 64, 32 and
    16 pixels, this changed the result by 0.6, 0.8 and 1.1 grey levels of 255 in the mean, and by 17 at most. The result
    of a smaller JPEG is identical to a full decode and resize.

    Raises:
        TooLargeError: more than `spec.max_pixels`, or more CPU time than `max_seconds`.
        DecodeError: not an image, truncated, or broken.

    """
    with opened(image, spec.max_pixels, max_seconds) as picture:
        return to_pixels(picture, spec)


@contextmanager
def opened(image: bytes, max_pixels: int, max_seconds: float = DEFAULT_SECONDS) -> Iterator[Image.Image]:
    """Open an image whose pixels are read in the block. Errors get a short message.

    CPU time is counted before the work starts, so no work has to be aborted.

    Raises:
        TooLargeError: more than `max_pixels`, or more CPU time than `max_seconds`.
        DecodeError: not an image, truncated, or broken.

    """
    _silence_pillow()
    budget = Budget(max_seconds)
    try:
        count_opening(image, budget)
        with Image.open(io.BytesIO(image), formats=FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                raise TooLargeError(f"{picture.width}x{picture.height} pixels, more than {max_pixels:,} allowed")
            count_reading(image, picture, budget)
            yield picture
    except OverBudgetError as error:
        raise TooLargeError(str(error)) from None
    except UnidentifiedImageError:
        raise DecodeError("not an image") from None
    except Image.DecompressionBombError:
        raise TooLargeError(f"more than {max_pixels:,} pixels") from None
    except BROKEN as error:
        raise DecodeError(f"broken image: {one_line(error)}") from None


def to_pixels(picture: Image.Image, spec: Preprocessing) -> Pixels:
    """Read an opened image as 8-bit pixels of shape [crop, crop, 3]: upright, resized and cropped."""
    return np.array(to_square(picture, spec))


def to_square(picture: Image.Image, spec: Preprocessing) -> Image.Image:
    """Read an opened image like `to_pixels`, as a Pillow image in RGB."""
    return _center_square(upright(picture, (spec.size, spec.size)), spec)


class Upright(NamedTuple):
    """Upright image, RGB or L."""

    image: Image.Image
    across: Span
    """part of the width that the original covers; after a reduction, the last column may be covered partly"""
    down: Span


def upright(picture: Image.Image, wanted: tuple[int, int]) -> Upright:
    """Read an opened image, to resize it to `wanted`: width and height before the image is turned upright."""
    in_file = picture.size
    reduced = picture.draft(None, (REDUCTION * wanted[0], REDUCTION * wanted[1]))
    width, height = reduced[1][2:] if reduced else in_file
    image = _to_8_bits(_loaded(picture, is_reduced=picture.size != in_file))
    turn = orientation(picture)
    if turn is None:
        return Upright(image, (0, width), (0, height))
    image = image.transpose(turn)
    if turn in _SWAPPING:
        width, height = height, width
    left = image.width - width if turn in _FROM_THE_RIGHT else 0
    top = image.height - height if turn in _FROM_THE_BOTTOM else 0
    return Upright(image, (left, left + width), (top, top + height))


def _loaded(picture: Image.Image, *, is_reduced: bool) -> Image.Image:
    """Read the pixels of an opened image, at its current size.

    simplejpeg reads colour JPEGs, with identical pixels. libjpeg hands Pillow row after row in one buffer. If this
    buffer begins at a multiple of 32 bytes, libjpeg's writes bypass the cache, and decoding takes a tenth longer. If
    simplejpeg refuses a file, Pillow reads it, or reports the error.
    """
    if isinstance(picture, JpegImageFile) and picture.format == "JPEG" and picture.mode == "RGB":
        width, height = picture.size
        pixels = np.empty((height, width, 3), dtype=np.uint8)  # an image of another size does not fit
        at_least = {"min_width": width, "min_height": height} if is_reduced else {}
        assert picture.fp is not None  # the file has not been read yet
        picture.fp.seek(0)
        with suppress(ValueError):
            read = simplejpeg.decode_jpeg(picture.fp.read(), buffer=pixels, **at_least)
            if read.shape == pixels.shape:
                return Image.fromarray(pixels)
    picture.load()
    return picture


_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _silence_pillow() -> None:
    """Ignore Pillow's warnings of large images, whose limit is checked here, and of odd metadata, which is not used.

    `catch_warnings` is not thread-safe. Adding the filter again would make other modules' warnings repeat.
    """
    if warnings.filters[:1] != [_QUIET]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def orientation(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that turns an image upright, or None if none is known or needed."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except BROKEN:
        # The pixels are fine. Viewers show an image with broken EXIF as stored.
        return None


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Convert an image to RGB or L, without a copy if possible. Grey stays one channel until the image is small."""
    if image.mode.startswith("I;16"):
        image = _high_bytes(image)
    elif image.mode in ("I", "F"):
        image = _scale_to_8_bits(image)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _high_bytes(image: Image.Image) -> Image.Image:
    """Keep the high bytes, as Pillow does for 16-bit colours. A PNG may declare one grey level transparent."""
    samples = np.asarray(image)
    grey = Image.fromarray((samples >> 8).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8)))
    return grey


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 32-bit samples. They carry no range: the ranges in use are up to 1, up to 255 and up to 65,535."""
    samples = np.asarray(image, dtype=np.float32)
    highest = float(samples.max(initial=0, where=np.isfinite(samples)))
    in_bytes = 255.0 if image.mode == "F" and highest <= 1 else 1.0
    scale = in_bytes if highest <= 255 else 256 / max(highest, 65536)
    return Image.fromarray(np.nan_to_num(samples * scale, posinf=255).clip(0, 255).astype(np.uint8))


def _center_square(upright: Upright, spec: Preprocessing) -> Image.Image:
    """Resize and crop in one pass over the kept pixels. `box` is in coordinates of the decoded image.

    The network's crop is cut from the stored square, so that preparation and endpoint give identical pixels.
    """
    shorter = min(end - start for start, end in (upright.across, upright.down))
    left, right = _kept(upright.across, shorter, spec.size)
    top, bottom = _kept(upright.down, shorter, spec.size)
    square = upright.image.resize((spec.size, spec.size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    square = square if square.mode == "RGB" else square.convert("RGB")
    start, end = (spec.size - spec.crop) // 2, (spec.size + spec.crop) // 2
    return square if spec.crop == spec.size else square.crop((start, start, end, end))


def _kept(span: Span, shorter: float, size: int) -> Span:
    """Return the part of one side that is resized to the centre `size` pixels."""
    side = span[1] - span[0]
    resized = round(side / (shorter / size))
    first, scale = (resized - size) // 2, side / resized
    return span[0] + first * scale, span[0] + min((first + size) * scale, side)
