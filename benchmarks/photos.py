"""Photographs to measure on: a folder of real ones, or made ones that cost a decoder about as much."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

NUM_CLASSES = 10


def photo_folder(given: Path | None, scratch: Path, num_images: int) -> Path:
    """Give the folder of real photographs, or fill `scratch` with made ones, <class>/*.jpg."""
    if given is not None:
        return given
    rng = np.random.default_rng(0)
    for index in range(num_images):
        folder = scratch / f"class-{index % NUM_CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:05d}.jpg").write_bytes(make_photo(rng))
    return scratch


def make_photo(rng: np.random.Generator, width: int = 341, height: int = 256) -> bytes:
    """Make a JPEG of quality 80 whose spectrum falls as 1/f, as that of photographs does (Field 1987)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    amplitude = 1 / frequency.clip(1 / width)
    noise = np.fft.fft2(rng.standard_normal((3, height, width)), axes=(1, 2))
    pixels = np.fft.ifft2(noise * amplitude, axes=(1, 2)).real
    pixels = 128 + 50 * pixels / pixels.std(axis=(1, 2), keepdims=True)
    jpeg = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0).clip(0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=80)
    return jpeg.getvalue()
