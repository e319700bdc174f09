"""An array on disk that grows by images: memory does not grow with it."""

import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from core.checksum import Checksum, checksum_of
from core.files import whole_file
from data.images.decode import Pixels


class GrowingArray:
    """A .npy file, uint8 [num_images, S, S, 3], and its checksum.

    Not written by `np.save`, which does not say so where the disk is full. The checksum is taken while it is
    written, for which the header must be right from the start: how many images will follow is known but for those that
    turn out to be broken. Only where there are such, header and checksum are made anew.
    """

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], expected: int) -> None:
        """Begin a file of `expected` images of one `shape`."""
        self.num_images = 0
        self._file, self._shape, self._expected = file, shape, expected
        header = _header((expected, *shape))
        file.write(header)
        self._checksum = Checksum(header)

    @property
    def checksum(self) -> str:
        """Of the whole file, once it is finished."""
        return self._checksum.hexdigest()

    def append(self, images: Pixels) -> None:
        """Add images, uint8 [N, S, S, 3]."""
        self._file.write(images.data)
        self._checksum.update(images.data)
        self.num_images += len(images)

    def finish(self) -> None:
        """Correct the header. NumPy pads it, so that it has the same length whatever the number."""
        if self.num_images != self._expected:
            self._file.seek(0)
            self._file.write(_header((self.num_images, *self._shape)))
            self._file.seek(0)
            self._checksum = checksum_of(self._file)


@contextmanager
def growing_array(path: Path, shape: tuple[int, ...], expected: int) -> Iterator[GrowingArray]:
    """Give an array to append images of one `shape` to, which becomes `path` after the block."""
    with whole_file(path) as temporary, temporary.open("w+b") as file:
        array = GrowingArray(file, shape, expected)
        yield array
        array.finish()


def map_array(path: Path, shape: tuple[int, ...]) -> Pixels:
    """Map a file of a `GrowingArray`, uint8 [num_images, *shape], in a third of the time that `np.load` takes.

    Raises:
        OSError: it cannot be opened.
        ValueError: it holds something else, or is cut off.

    """
    start = len(_header((0, *shape)))
    with path.open("rb") as file:
        num_images = (os.fstat(file.fileno()).st_size - start) // math.prod(shape)
        if file.read(start) != _header((num_images, *shape)):
            raise ValueError(f"{path.name} is cut off, or holds no images of {' x '.join(map(str, shape))} bytes")
        return np.memmap(file, np.uint8, "r", start, (num_images, *shape))


def read_images(path: Path, indices: Sequence[int], images: Pixels) -> None:
    """Fill `images`, uint8 [N, S, S, 3], with those at N indices of a `GrowingArray`'s file.

    For a few of many: mapped, they would take twice as long.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is cut off.

    """
    shape = images.shape[1:]
    start, num_bytes = len(_header((0, *shape))), math.prod(shape)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for image, index in zip(images, indices, strict=True):
            if os.preadv(descriptor, [image.data], start + index * num_bytes) != num_bytes:
                what = f"image {index} of {' x '.join(map(str, shape))} bytes"
                raise ValueError(f"{path.name} is cut off: it has no {what}")
    finally:
        os.close(descriptor)


@cache
def _header(shape: tuple[int, ...]) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return content.getvalue()
