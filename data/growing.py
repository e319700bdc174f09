"""An array on disk that grows by images: memory does not grow with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.checksum import checksum_of
from data.decode import Pixels
from data.stage import whole_file

BUFFER_BYTES = 2**19
"""Written at once: image by image, the file system takes half as long again."""


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
        self._write_header(expected)
        file.flush()
        file.seek(0)
        self._checksum = checksum_of(file)

    @property
    def checksum(self) -> str:
        """Of the whole file, once it is finished."""
        return self._checksum.hexdigest()

    def append(self, pixels: Pixels) -> None:
        """Add one image."""
        self._file.write(pixels.data)
        self._checksum.update(pixels.data)
        self.num_images += 1

    def finish(self) -> None:
        """Correct the header. NumPy pads it, so that it has the same length whatever the number."""
        if self.num_images != self._expected:
            self._file.seek(0)
            self._write_header(self.num_images)
            self._file.seek(0)
            self._checksum = checksum_of(self._file)

    def _write_header(self, num_images: int) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def growing_array(path: Path, shape: tuple[int, ...], expected: int) -> Iterator[GrowingArray]:
    """Give an array to append images of one `shape` to, which becomes `path` after the block."""
    with whole_file(path) as temporary, temporary.open("w+b", buffering=BUFFER_BYTES) as file:
        array = GrowingArray(file, shape, expected)
        yield array
        array.finish()
