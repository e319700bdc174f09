"""Building blocks of image bombs."""

import io

import numpy as np
from PIL import Image

FULL = 5_900_000
"""Bytes of a scalable bomb, just below the limit of an endpoint for `edge`."""


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Encode an image with Pillow."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    """Make an image that does not compress."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def flat(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Make an image of one colour."""
    return Image.new(mode, (width, height))
