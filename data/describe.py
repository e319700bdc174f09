"""What is noted of an image while it is decoded, so that the report on the data decodes nothing again."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from data.decode import BROKEN, DecodeError, Pixels, Preprocessing, opened, orientation, to_square
from data.workers import keep_going

TRAITS = ("CMYK", "palette", "16 bit", "transparency", "EXIF rotation", "animation")
"""Forms of images that many decoders get wrong; `data.decode` handles them all."""


class ImageFacts(BaseModel):
    """Of one image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int
    height: int
    traits: tuple[str, ...]
    """some of TRAITS"""
    look: str
    """perceptual hash of the prepared pixels, 16 hexadecimal digits"""


Described = tuple[Pixels, ImageFacts]


def decode_and_describe(images: Sequence[bytes], spec: Preprocessing) -> list[Described | DecodeError]:
    """Turn the bytes of some images into pixels, as `data.decode.decode`, and note what they are.

    One that cannot be decoded has the reason in its place.
    """
    looks = Looks(len(images))
    described = [_describe(image, spec, looks) for image in images]
    return [
        one if isinstance(one, DecodeError) else (one[0], ImageFacts(**one[1], look=f"{look:016x}"))
        for one, look in zip(described, looks.hashes(), strict=True)
    ]


def _describe(image: bytes, spec: Preprocessing, looks: "Looks") -> tuple[Pixels, dict[str, Any]] | DecodeError:
    keep_going()
    try:
        with opened(image, spec.max_pixels) as picture:
            (width, height), traits = picture.size, _traits(picture)
            square = to_square(picture, spec)
            traits["animation"] = _is_animated(picture)
    except DecodeError as error:
        looks.add(None)
        return error
    looks.add(square)
    facts = {"width": width, "height": height, "traits": tuple(name for name in TRAITS if traits[name])}
    return np.asarray(square), facts


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


class Looks:
    """Perceptual hashes of a few images, which cost less together: 64 bits, few of which differ if images look alike.

    The signs of the 8 by 8 lowest frequencies of its brightness against their median (known as pHash). Half of the bits
    are set whatever the image, so that drawings on an empty ground are told apart as well as photographs: of the pairs
    of different digits of scikit-learn, 0.02 % lie within 6 bits, where the gradients' signs (dHash) leave 4.6 %.
    """

    def __init__(self, num_images: int) -> None:
        """Make room for `num_images`."""
        self._num_added = 0
        # One strip of pixels: small images that stay would keep Pillow from using the same, cached memory again.
        self._strip = Image.new("RGB", (_SIDE, _SIDE * num_images))

    def add(self, image: Image.Image | None) -> None:
        """Add a square image, RGB; None: what cannot be decoded looks black."""
        if image is not None:
            self._strip.paste(shrink(image, _SIDE), (0, _SIDE * self._num_added))
        self._num_added += 1

    def hashes(self) -> list[int]:
        """Hash all images, in their order."""
        grey = np.asarray(self._strip.convert("L"), dtype=np.float64).reshape(-1, _SIDE, _SIDE)
        frequencies = (_COSINES @ grey @ _COSINES.T).reshape(-1, 64)
        bits = frequencies > np.sort(frequencies[:, 1:])[:, 31:32]
        return np.packbits(bits).view(">u8").tolist()


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Average a square image down to `side` pixels."""
    # Whole pixels are added up first, for which Pillow has a faster way.
    small = image.reduce(max(1, image.width // side))
    return small if small.width == side else small.resize((side, side), Image.Resampling.BOX)


_SIDE = 32

# The discrete cosine transform in whole numbers, whose sums stay below 2**53: the same bits on every machine.
_COSINES = np.round(2**14 * np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(32) + 1)))
