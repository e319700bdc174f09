"""Array file to which images are appended, without holding them in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from core.checksum import file_checksum
from core.files import whole_file
from data.images.decode import Pixels


class GrowingArray:
    """File in .npy format, uint8 [num_images, S, S, 3].

    Not a memory map, which kills the process when the disk is full, and not `np.save`, which does not report a full
    disk.
    """

    checksum = ""
    """checksum of the finished file"""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...]) -> None:
        """Begin a file of images of `shape`."""
        self.num_images = 0
        self._file, self._shape = file, shape
        self._write_header()

    def append(self, images: Pixels) -> None:
        """Append images, uint8 [N, S, S, 3]."""
        self._file.write(images.data)
        self.num_images += len(images)

    def finish(self) -> None:
        """Write the number of images into the header, which NumPy pads to a constant length."""
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        shape = (self.num_images, *self._shape)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})


@contextmanager
def growing_array(path: Path, shape: tuple[int, ...]) -> Iterator[GrowingArray]:
    """Yield an array for images of `shape`. The file is renamed to `path` after the block."""
    with whole_file(path) as temporary:
        with temporary.open("wb") as file:
            array = GrowingArray(file, shape)
            yield array
            array.finish()
        array.checksum = file_checksum(temporary)


def map_array(path: Path, shape: tuple[int, ...]) -> Pixels:
    """Map a file of a `GrowingArray`, uint8 [num_images, *shape].

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file holds something else, or is truncated.

    """
    try:
        array: Pixels = np.load(path, mmap_mode="r")
    except (ValueError, EOFError):
        array = np.empty(0, dtype=np.uint8)
    if array.dtype != np.uint8 or array.shape[1:] != shape:
        raise ValueError(f"{path.name} is cut off, or holds no images of {' x '.join(map(str, shape))} bytes")
    return array
