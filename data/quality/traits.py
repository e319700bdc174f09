"""What is noted of an image while it is decoded, so that the report on the data decodes nothing again."""

from contextlib import suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from data.images.budget import DEFAULT_SECONDS
from data.images.decode import BROKEN, Pixels, Preprocessing, opened, orientation, to_square

_ROTATION, _ANIMATION = "EXIF rotation", "animation"
TRAITS = ("CMYK", "palette", "16 bit", "transparency", _ROTATION, _ANIMATION)
"""Forms of images that many decoders get wrong; `data.images.decode` handles them all."""


Floats = npt.NDArray[np.float32]
COLORS: Floats = np.eye(3, dtype=np.float32)


class Described(NamedTuple):
    """An image as it is prepared, and what it was."""

    square: Image.Image
    """RGB; its pixels are those of `data.images.decode.decode`"""
    width: int
    height: int
    traits: tuple[str, ...]
    """some of TRAITS"""


def decode_and_describe(image: bytes, spec: Preprocessing, max_seconds: float = DEFAULT_SECONDS) -> Described:
    """Turn the bytes of an image file into pixels, as `data.images.decode.decode`, and note what it is.

    Raises:
        DecodeError: not an image, too large, truncated, or broken.

    """
    with opened(image, spec.max_pixels, max_seconds) as picture:
        (width, height), traits = picture.size, _traits(picture)
        square = to_square(picture, spec)
        if _is_animated(picture):
            traits += (_ANIMATION,)
    return Described(square, width, height, traits)


def _traits(picture: Image.Image) -> tuple[str, ...]:
    """Look at what is known before the pixels are decoded; reading them may change the mode."""
    if picture.mode == "RGB" and isinstance(picture, JpegImageFile):
        return _rotation(picture)  # of a photograph there is nothing else to ask
    # Pillow reads PNG and TIFF of 16 bits a colour as 8 bits: what the file holds stands in the raw mode.
    raw_modes = " ".join(str(tile[3]) for tile in getattr(picture, "tile", ()))
    traits = {
        "CMYK": picture.mode == "CMYK",
        "palette": picture.mode in ("P", "PA"),
        "16 bit": picture.mode.startswith(("I", "F")) or ";16" in raw_modes,
        "transparency": picture.has_transparency_data,
    }
    # Last, because some plugins decode the pixels to find out.
    return (*(name for name, is_there in traits.items() if is_there), *_rotation(picture))


def _rotation(picture: Image.Image) -> tuple[str, ...]:
    return () if orientation(picture) is None else (_ROTATION,)


def _is_animated(picture: Image.Image) -> bool:
    """Look for a second frame, last: where it is broken, the first one has been read all the same."""
    with suppress(*BROKEN):
        # Of JPEGs, a camera's MPO has others: a preview, or the other eye's view.
        return not isinstance(picture, JpegImageFile) and bool(getattr(picture, "is_animated", False))
    return False


def perceptual_hashes(images: Pixels) -> list[int]:
    """Hash square images, uint8 [N, S, S, 3]: 64 bits each, few of which differ if two images look alike.

    The signs of the 8 by 8 lowest frequencies of its brightness against their median (known as pHash). Half of the bits
    are set whatever the image, so that drawings on an empty ground are told apart as well as photographs: of the pairs
    of different digits of scikit-learn, 0.0001 % lie within 6 bits, and 0.18 % by the gradients' signs (dHash).
    """
    grey = np.rint(16 * shrink(images, _SIDE, _BRIGHTNESS)[..., 0].astype(np.float64))
    frequencies = (_COSINES @ grey @ _COSINES.T).reshape(-1, 64)
    bits = frequencies > np.sort(frequencies[:, 1:])[:, 31:32]
    hashes: list[int] = np.packbits(bits).view(">u8").tolist()
    return hashes


def shrink(images: Pixels, side: int, mix: Floats = COLORS) -> Floats:
    """Average square images, uint8 [N, S, S, 3], down to float32 [N, side, side, K], their colours mixed by [3, K].

    Adds up whole numbers, below 2**24 if those of `mix` are multiples of 1/256 up to 1: the same bits on every machine.
    """
    size = images.shape[1]
    if size % side or size > _MAX_FACTOR * side:
        reduced = (Image.fromarray(image).reduce(max(1, size // side)) for image in images)
        images = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BOX)) for image in reduced])
    factor = images.shape[1] // side
    rows = images.reshape(len(images), side, factor, -1).sum(axis=2, dtype=np.uint16)
    # Many small matrices: one large one would be worth a thread to NumPy, whose core has other images to decode.
    spans = rows.reshape(len(images), side, side, -1).astype(np.float32)
    averages: Floats = spans @ np.tile(mix, (factor, 1)) / np.float32(factor**2)
    return averages


_SIDE = 32
_MAX_FACTOR = 16
_BRIGHTNESS: Floats = np.array([[77 / 256], [150 / 256], [29 / 256]], dtype=np.float32)
"""What the eye makes of red, green and blue (Rec. 601)."""

# The discrete cosine transform in whole numbers, whose sums stay below 2**53: the same bits on every machine.
_COSINES = np.round(2**14 * np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1)))
