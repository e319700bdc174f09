"""What is noted of an image while it is decoded, so that the report on the data decodes nothing again."""

from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.decode import BROKEN, Pixels, Preprocessing, opened, orientation, to_square
from data.workers import keep_going

TRAITS = ("CMYK", "palette", "16 bit", "transparency", "EXIF rotation", "animation")
"""Forms of images that many decoders get wrong; `data.decode` handles them all."""


class Described(NamedTuple):
    """An image as it is prepared, and what it was."""

    square: Image.Image
    """RGB; its pixels are those of `data.decode.decode`"""
    width: int
    height: int
    traits: tuple[str, ...]
    """some of TRAITS"""


def decode_and_describe(image: bytes | memoryview, spec: Preprocessing) -> Described:
    """Turn the bytes of an image file into pixels, as `data.decode.decode`, and note what it is.

    Raises:
        DecodeError: not an image, too large, truncated, or broken.

    """
    keep_going()
    with opened(image, spec.max_pixels) as picture:
        (width, height), traits = picture.size, _traits(picture)
        square = to_square(picture, spec)
        traits["animation"] = _is_animated(picture)
    return Described(square, width, height, tuple(name for name in TRAITS if traits[name]))


def _traits(picture: Image.Image) -> dict[str, bool]:
    """Look at what is known before the pixels are decoded; reading them may change the mode."""
    # Pillow reads PNG and TIFF of 16 bits a colour as 8 bits: what the file holds stands in the raw mode.
    raw_modes = " ".join(str(tile[3]) for tile in getattr(picture, "tile", ()))
    return {
        "CMYK": picture.mode == "CMYK",
        "palette": picture.mode in ("P", "PA"),
        "16 bit": picture.mode.startswith(("I", "F")) or ";16" in raw_modes,
        "transparency": picture.has_transparency_data,
        "EXIF rotation": orientation(picture) is not None,
    }


def _is_animated(picture: Image.Image) -> bool:
    """Look for a second frame, last: where it is broken, the first one has been read all the same."""
    with suppress(*BROKEN):
        # A camera's MPO holds a preview, or the other eye's view.
        return picture.format != "MPO" and bool(getattr(picture, "is_animated", False))
    return False


def perceptual_hashes(images: Pixels) -> list[int]:
    """Hash square images, uint8 [N, S, S, 3]: 64 bits each, few of which differ if two images look alike.

    The signs of the 8 by 8 lowest frequencies of its brightness against their median (known as pHash). Half of the bits
    are set whatever the image, so that drawings on an empty ground are told apart as well as photographs: of the pairs
    of different digits of scikit-learn, 0.02 % lie within 6 bits, where the gradients' signs (dHash) leave 4.6 %.
    """
    small = Image.fromarray(shrink(images, _SIDE).reshape(-1, _SIDE, 3))
    grey = np.asarray(small.convert("L"), dtype=np.float64).reshape(-1, _SIDE, _SIDE)
    frequencies = (_COSINES @ grey @ _COSINES.T).reshape(-1, 64)
    bits = frequencies > np.sort(frequencies[:, 1:])[:, 31:32]
    hashes: list[int] = np.packbits(bits).view(">u8").tolist()
    return hashes


def shrink(images: Pixels, side: int) -> Pixels:
    """Average square images, uint8 [N, S, S, 3], down to uint8 [N, side, side, 3]."""
    size = images.shape[1]
    if size % side == 0:  # one below another, in one go
        return np.asarray(Image.fromarray(images.reshape(-1, size, 3)).reduce(size // side)).reshape(-1, side, side, 3)
    # Whole pixels are added up first, for which Pillow has a faster way.
    reduced = (Image.fromarray(image).reduce(max(1, size // side)) for image in images)
    return np.stack([np.asarray(image.resize((side, side), Image.Resampling.BOX)) for image in reduced])


_SIDE = 32

# The discrete cosine transform in whole numbers, whose sums stay below 2**53: the same bits on every machine.
_COSINES = np.round(2**14 * np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1)))
