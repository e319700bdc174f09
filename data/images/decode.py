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
"""Packages whose versions pixels depend on."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB", "ICO", "PCX", "TGA")
"""Pictures, the likeliest first. Pillow knows more, some of which start other programs (EPS) or hold documents."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by the value of EXIF's tag Orientation."""

_SWAPPING = {_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8]}
_FROM_THE_RIGHT = {_TURNS[2], _TURNS[3], _TURNS[6], _TURNS[7]}
_FROM_THE_BOTTOM = {_TURNS[3], _TURNS[4], _TURNS[7], _TURNS[8]}
"""Turns that make columns of rows; those whose first column, or first row, was a last one."""

BROKEN = (OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError,
          AttributeError, AssertionError, MemoryError, struct.error, zlib.error)  # fmt: skip
"""What Pillow's plugins raise for hostile files."""


REDUCTION = 2
"""A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves this many times the pixels wanted, each way."""

Span = tuple[float, float]
"""Where a side starts and ends, in pixels."""


class DecodeError(Exception):
    """These bytes are no usable image; the message says why, in a few words without paths."""


class TooLargeError(DecodeError):
    """The image has more pixels, or takes more work or memory, than allowed; it was not decoded."""


class Normalization(BaseModel):
    """Pixels become (pixel / 255 - mean) / std, for red, green and blue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Preprocessing(BaseModel):
    """All that turns image bytes into a network's input: the same for preparation, evaluation and the endpoint.

    The shorter side is resized to `size` and the centre square kept, as in section 2 of the AlexNet paper; of that, the
    centre `crop` pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    crop: int
    max_pixels: int
    normalization: Normalization | None = None
    """part of the exported graph; None while images are prepared, which no network sees yet"""

    @property
    def hash(self) -> str:
        """Name of this preprocessing: equal exactly where all its values are equal."""
        return hashlib.sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()[:12]


def decode(image: bytes, spec: Preprocessing, max_seconds: float = DEFAULT_SECONDS) -> Pixels:
    """Turn the bytes of an image file into pixels of shape [crop, crop, 3].

    EXIF orientation is applied, transparency is laid over white, samples of more than 8 bits are scaled to 8, and the
    first frame stands for an animation. Safe to call from several threads.

    A JPEG whose shorter side is 4 times `spec.size` or more is decoded at 1/2, 1/4 or 1/8, by libjpeg's smaller
    transforms, to no less than twice `spec.size`. Of 205 photographs with a shorter side of 256, decoded to 64, 32 and
    16 pixels, that changed the result by 0.6, 0.8 and 1.1 grey levels of 255 in the mean, and by 17 at most; what is
    smaller than that is the same to the last bit as when all is decoded and then resized.

    Raises:
        TooLargeError: more than `spec.max_pixels`, or more work than `max_seconds` of one core.
        DecodeError: not an image, truncated, or broken.

    """
    with opened(image, spec.max_pixels, max_seconds) as picture:
        return to_pixels(picture, spec)


@contextmanager
def opened(image: bytes, max_pixels: int, max_seconds: float = DEFAULT_SECONDS) -> Iterator[Image.Image]:
    """Open an image whose pixels are read in the block; what goes wrong there is named in a few words.

    The work of opening and reading is counted before it is done: nothing that has begun needs to be broken off.

    Raises:
        TooLargeError: more than `max_pixels`, or more work than `max_seconds` of one core.
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
    """Read the pixels of an opened image, upright and of 8 bits, resized and cropped: [crop, crop, 3]."""
    return np.array(to_square(picture, spec))


def to_square(picture: Image.Image, spec: Preprocessing) -> Image.Image:
    """Read an opened image as `to_pixels` does, and leave it to Pillow: RGB."""
    return _center_square(upright(picture, (spec.size, spec.size)), spec)


class Upright(NamedTuple):
    """An image, RGB or L, as it is to be looked at."""

    image: Image.Image
    across: Span
    """what the original covers of the width: where the image was reduced, its last column may be a part of one"""
    down: Span


def upright(picture: Image.Image, wanted: tuple[int, int]) -> Upright:
    """Read an opened image that is going to be resized to `wanted`, its width and height as they are in the file."""
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
    """Read the pixels of an opened image, of its size as it is now.

    JPEGs of colours are read by simplejpeg, to the same bits. libjpeg hands Pillow row after row in one buffer, and
    writes past the cache where that begins at a multiple of 32 bytes, so that decoding takes a tenth longer. Whatever
    simplejpeg refuses, Pillow reads after all, or says what is wrong with it.
    """
    if isinstance(picture, JpegImageFile) and picture.format == "JPEG" and picture.mode == "RGB":
        width, height = picture.size
        pixels = np.empty((height, width, 3), dtype=np.uint8)  # into which a header that says otherwise does not fit
        at_least = {"min_width": width, "min_height": height} if is_reduced else {}
        assert picture.fp is not None  # it has not been read yet
        picture.fp.seek(0)
        with suppress(ValueError):
            read = simplejpeg.decode_jpeg(picture.fp.read(), buffer=pixels, **at_least)
            if read.shape == pixels.shape:
                return Image.fromarray(pixels)
    picture.load()
    return picture


_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _silence_pillow() -> None:
    """Pillow warns of large images, whose limit is checked here, and of odd metadata, which is not used.

    `catch_warnings` is not safe where several threads decode; and a filter set anew would let others' warnings repeat.
    """
    if warnings.filters[:1] != [_QUIET]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def orientation(image: Image.Image) -> Image.Transpose | None:
    """What turns an image upright; None where it is, or does not say."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except BROKEN:
        # The pixels are fine: every viewer shows such an image as it lies.
        return None


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Make an image RGB or L; what is one of them is not copied, and grey stays one channel until it is small."""
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
    """As Pillow does itself for colours of 16 bits; a PNG may declare one grey level transparent."""
    samples = np.asarray(image)
    grey = Image.fromarray((samples >> 8).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8)))
    return grey


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Samples of 32 bits carry no range of their own: up to 1, up to 255 and up to 65,535 are the ranges in use."""
    samples = np.asarray(image, dtype=np.float32)
    highest = float(samples.max(initial=0, where=np.isfinite(samples)))
    in_bytes = 255.0 if image.mode == "F" and highest <= 1 else 1.0
    scale = in_bytes if highest <= 255 else 256 / max(highest, 65536)
    return Image.fromarray(np.nan_to_num(samples * scale, posinf=255).clip(0, 255).astype(np.uint8))


def _center_square(upright: Upright, spec: Preprocessing) -> Image.Image:
    """Resize and crop in one pass over the pixels that are kept: `box` is in coordinates of the decoded image.

    The network's crop is cut from the stored square, so that it is the same to the last bit whether an image was
    prepared before or has come to the endpoint just now.
    """
    shorter = min(end - start for start, end in (upright.across, upright.down))
    left, right = _kept(upright.across, shorter, spec.size)
    top, bottom = _kept(upright.down, shorter, spec.size)
    square = upright.image.resize((spec.size, spec.size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    square = square if square.mode == "RGB" else square.convert("RGB")
    start, end = (spec.size - spec.crop) // 2, (spec.size + spec.crop) // 2
    return square if spec.crop == spec.size else square.crop((start, start, end, end))


def _kept(span: Span, shorter: float, size: int) -> Span:
    """Give the part of one side that the centre `size` of its resized pixels are made of."""
    side = span[1] - span[0]
    resized = round(side / (shorter / size))
    first, scale = (resized - size) // 2, side / resized
    return span[0] + first * scale, span[0] + min((first + size) * scale, side)
