"""Photographs for benchmarks: real photographs in a folder, or synthetic ones with a similar decoding cost."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

NUM_CLASSES = 10


OPTIONS: list[tuple[str, dict[str, object]]] = [
    ("--folder", {"type": Path, "help": "real photographs, <class>/*.jpg; default: made ones"}),
    ("--images", {"type": int, "default": 20_000, "help": "number of made photographs"}),
]
SIZE = (341, 256)
"""ImageNet's aspect ratio, and a shorter side as in the AlexNet paper."""
IMAGENET_SIZE = (500, 375)
"""Most common size of ImageNet's files."""


def photo_folder(given: Path | None, scratch: Path, num_images: int, size: tuple[int, int] = SIZE) -> Path:
    """Return the folder of real photographs, or fill `scratch` with <class>/*.jpg, cropped from a synthetic scene."""
    if given is not None:
        return given
    width, height = size
    rng = np.random.default_rng(0)
    scene = _scene(rng, 8 * width, 8 * height)
    # Each place once, because preparation refuses equal photographs in two classes.
    places = rng.choice(49 * width * height, num_images, replace=False)
    for index, (top, left) in enumerate(zip(*np.divmod(places, 7 * width), strict=True)):
        folder = scratch / f"class-{index % NUM_CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        photo = scene.crop((int(left), int(top), int(left) + width, int(top) + height))
        # Neighbouring crops must not look alike, as real photographs rarely do.
        for turn in _TURNS[int(rng.integers(8))]:
            photo = turn(photo)
        (folder / f"{index:05d}.jpg").write_bytes(_encode(photo))
    return scratch


_TURNS = [
    [turn for bit, turn in enumerate((ImageOps.mirror, ImageOps.flip, ImageOps.invert)) if number >> bit & 1]
    for number in range(8)
]


def make_photo(rng: np.random.Generator, width: int = SIZE[0], height: int = SIZE[1]) -> bytes:
    """Make a JPEG of quality 80 with a 1/f spectrum, like that of photographs (Field 1987)."""
    return _encode(_scene(rng, width, height))


def _scene(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    amplitude = 1 / frequency.clip(1 / width)
    noise = np.fft.fft2(rng.standard_normal((3, height, width)), axes=(1, 2))
    pixels = np.fft.ifft2(noise * amplitude, axes=(1, 2)).real
    pixels = 128 + 50 * pixels / pixels.std(axis=(1, 2), keepdims=True)
    return Image.fromarray(pixels.transpose(1, 2, 0).clip(0, 255).astype(np.uint8))


def _encode(photo: Image.Image) -> bytes:
    jpeg = io.BytesIO()
    photo.save(jpeg, "JPEG", quality=80)
    return jpeg.getvalue()
