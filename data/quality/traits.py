"""Traits of an image, recorded during decoding, so that the data report does not decode again."""

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
"""Forms of images that many decoders get wrong. `data.images.decode` handles all of them."""


Floats = npt.NDArray[np.float32]
COLORS: Floats = np.eye(3, dtype=np.float32)


class Described(NamedTuple):
    """Prepared image, and the traits of its file."""

    square: Image.Image
    """RGB, with the pixels of `data.images.decode.decode`"""
    width: int
    height: int
    traits: tuple[str, ...]
    """some of TRAITS"""


def decode_and_describe(image: bytes, spec: Preprocessing, max_seconds: float = DEFAULT_SECONDS) -> Described:
    """Decode the bytes of an image file like `data.images.decode.decode`, and describe the file.

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
    """Return the traits that are known before decoding. Decoding may change the mode."""
    if picture.mode == "RGB" and isinstance(picture, JpegImageFile):
        return _rotation(picture)  # a photograph has no other traits
    # Pillow reads PNG and TIFF with 16 bits per colour as 8 bits. The raw mode tells the bits in the file.
    raw_modes = " ".join(str(tile[3]) for tile in getattr(picture, "tile", ()))
    traits = {
        "CMYK": picture.mode == "CMYK",
        "palette": picture.mode in ("P", "PA"),
        "16 bit": picture.mode.startswith(("I", "F")) or ";16" in raw_modes,
        "transparency": picture.has_transparency_data,
    }
    # Rotation comes last, because some plugins decode the pixels to find it.
    return (*(name for name, is_there in traits.items() if is_there), *_rotation(picture))


def _rotation(picture: Image.Image) -> tuple[str, ...]:
    return () if orientation(picture) is None else (_ROTATION,)


def _is_animated(picture: Image.Image) -> bool:
    """Whether there is a second frame. Called last, because a broken second frame must not affect the first."""
    with suppress(*BROKEN):
        # The other frames of a camera's MPO are no animation: a preview, or the other eye's view.
        return not isinstance(picture, JpegImageFile) and bool(getattr(picture, "is_animated", False))
    return False


def perceptual_hashes(images: Pixels) -> list[int]:
    """Hash square images, uint8 [N, S, S, 3], to 64 bits each. Similar images differ in few bits.

    The bits compare the 8 by 8 lowest frequencies of the brightness with their median (pHash). Half of the bits are set
    in every image, so the hash distinguishes drawings on an empty ground as well as photographs. Of the pairs of
    different digits of scikit-learn, 0.0001 % are within 6 bits, compared with 0.18 % for gradient signs (dHash).
    """
    grey = np.rint(16 * shrink(images, _SIDE, _BRIGHTNESS)[..., 0].astype(np.float64))
    frequencies = (_COSINES @ grey @ _COSINES.T).reshape(-1, 64)
    bits = frequencies > np.sort(frequencies[:, 1:])[:, 31:32]
    hashes: list[int] = np.packbits(bits).view(">u8").tolist()
    return hashes


def shrink(images: Pixels, side: int, mix: Floats = COLORS) -> Floats:
    """Average square images, uint8 [N, S, S, 3], to float32 [N, side, side, K]. `mix` [3, K] mixes the colours.

    If `mix` has multiples of 1/256 up to 1, all sums are whole numbers below 2**24: the same bits on every machine.
    """
    size = images.shape[1]
    if size % side or size > _MAX_FACTOR * side:
        reduced = (Image.fromarray(image).reduce(max(1, size // side)) for image in images)
        images = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BOX)) for image in reduced])
    factor = images.shape[1] // side
    rows = images.reshape(len(images), side, factor, -1).sum(axis=2, dtype=np.uint16)
    # Many small matrices. For a large one, NumPy would start threads, but the other cores decode images.
    spans = rows.reshape(len(images), side, side, -1).astype(np.float32)
    averages: Floats = spans @ np.tile(mix, (factor, 1)) / np.float32(factor**2)
    return averages


_SIDE = 32
_MAX_FACTOR = 16
_BRIGHTNESS: Floats = np.array([[77 / 256], [150 / 256], [29 / 256]], dtype=np.float32)
"""Luma weights of red, green and blue (Rec. 601)."""

# Discrete cosine transform in whole numbers. The sums stay below 2**53: the same bits on every machine.
_COSINES = np.round(2**14 * np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1)))
