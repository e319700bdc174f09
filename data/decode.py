import hashlib
import io
import re
import struct
import warnings
import zlib

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB", "ICO", "PCX", "TGA")
"""Pictures, the likeliest first. Pillow knows more, some of which start other programs (EPS) or hold documents."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by the value of EXIF's tag Orientation."""

BROKEN = (OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError,
          AttributeError, AssertionError, MemoryError, struct.error, zlib.error)  # fmt: skip
"""What Pillow's plugins raise for hostile files."""


class DecodeError(Exception):
    """These bytes are no usable image; the message says why, in a few words without paths."""


class TooLargeError(DecodeError):
    """The image has more pixels than allowed; it was not decoded."""


class Preprocessing(BaseModel):
    """All that turns image bytes into a network's input: the same for preparation, evaluation and the endpoint.

    The shorter side is resized to `size` and the centre square kept, as in section 2 of the AlexNet paper; of that, the
    centre `crop` pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    crop: int
    max_pixels: int

    @property
    def hash(self) -> str:
        """Name of this preprocessing: equal exactly where all its values are equal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


def decode(image: bytes, spec: Preprocessing) -> Pixels:
    """Turn the bytes of an image file into pixels of shape [crop, crop, 3].

    EXIF orientation is applied, transparency is laid over white, samples of more than 8 bits are scaled to 8, and the
    first frame stands for an animation. Safe to call from several threads.

    Raises:
        TooLargeError: more than `spec.max_pixels`.
        DecodeError: not an image, truncated, or broken.

    """
    _silence_pillow()
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            if opened.width * opened.height > spec.max_pixels:
                raise TooLargeError(f"{opened.width}x{opened.height} pixels, more than {spec.max_pixels:,} allowed")
            opened.load()
            upright = _orientation(opened)
            pixels = _to_8_bits(opened)
            return _center_square(pixels.transpose(upright) if upright is not None else pixels, spec)
    except UnidentifiedImageError:
        raise DecodeError("not an image") from None
    except Image.DecompressionBombError:
        raise TooLargeError(f"more than {spec.max_pixels:,} pixels") from None
    except BROKEN as error:
        raise DecodeError(f"broken image: {_one_line(error)}") from None


_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _silence_pillow() -> None:
    """Pillow warns of large images, whose limit is checked here, and of odd metadata, which is not used.

    `catch_warnings` is not safe where several threads decode; and a filter set anew would let others' warnings repeat.
    """
    if warnings.filters[:1] != [_QUIET]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
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
    if highest <= 255:
        scale = 255.0 if image.mode == "F" and highest <= 1 else 1.0
    else:
        scale = 1 / 256 if highest <= 65535 else 255 / highest
    return Image.fromarray(np.nan_to_num(samples * scale, posinf=255).clip(0, 255).astype(np.uint8))


def _center_square(image: Image.Image, spec: Preprocessing) -> Pixels:
    """Resize and crop in one pass over the pixels that are kept: `box` is in coordinates of the original.

    The network's crop is cut from the stored square, so that it is the same to the last bit whether an image was
    prepared before or has come to the endpoint just now.
    """
    scale = min(image.size) / spec.size
    spans = [_kept(side, round(side / scale), spec.size) for side in image.size]
    (left, right), (top, bottom) = spans
    square = image.resize((spec.size, spec.size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    start = (spec.size - spec.crop) // 2
    end = start + spec.crop
    return np.array(square.convert("RGB").crop((start, start, end, end)))


def _kept(side: int, resized: int, size: int) -> tuple[float, float]:
    """Give the part of one side that the centre `size` of its `resized` pixels are made of."""
    first, scale = (resized - size) // 2, side / resized
    return first * scale, min((first + size) * scale, side)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
