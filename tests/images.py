"""Image files for the tests of data/: noise, in which every wrong pixel shows.

PPM is the usual format, because its bytes, from which the splits follow, depend on no compression library.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ppm(pixels):
    height, width, _ = pixels.shape
    return b"P6 %d %d 255\n" % (width, height) + pixels.tobytes()


def encode(image, file_format, **options):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, file_format, **options)
    return file.getvalue()


def write(root, files):
    """Write `files`, bytes by path; returns the folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def photos(num_images, *, classes=("cat", "dog"), width=12, height=10, seed=0):
    """Different images for every class, bytes by path."""
    return {
        f"{name}/{index:04d}.ppm": ppm(noise(width, height, (seed, number, index)))
        for number, name in enumerate(classes)
        for index in range(num_images)
    }


def reference(image, size):
    """The paper's preparation in Pillow's words: the shorter side becomes `size`, the centre square is kept."""
    image = image.convert("RGB")
    scale = min(image.size) / size
    width, height = (round(side / scale) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def files_in(folder: Path):
    """The bytes of all files, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
