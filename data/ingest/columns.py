"""Columns of Arrow tables, from Python's values and from our files."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Arrow's own way from Python's values, `pa.array`, begins by importing pandas: 0.2 s.


def texts(values: Sequence[str | None]) -> pa.StringArray:
    """Make a column of strings."""
    is_there = np.array([value is not None for value in values], dtype=bool)
    encoded = [(value or "").encode() for value in values]
    ends = _offsets([0, *accumulate(map(len, encoded))])
    bitmap = None if is_there.all() else pa.py_buffer(np.packbits(is_there, bitorder="little"))
    return pa.StringArray.from_buffers(len(values), ends, pa.py_buffer(b"".join(encoded)), bitmap)


class BinaryColumn:
    """A column of bytes that is filled in place, value after value: what comes from a file is copied once."""

    def __init__(self, num_bytes: int) -> None:
        """Begin with room for `num_bytes`; where they do not suffice, there will be more."""
        self._content = np.empty(num_bytes, dtype=np.uint8)
        self._ends = [0]

    def room(self, num_bytes: int) -> memoryview:
        """Where the next value goes; what is written there is a part of the column once it is added."""
        start = self._ends[-1]
        if (missing := start + num_bytes - len(self._content)) > 0:
            more = np.empty(max(missing, len(self._content)), dtype=np.uint8)  # what is there is not copied each time
            self._content = np.append(self._content, more)
        return self._content.data[start : start + num_bytes]

    def filled(self, value: bytes) -> memoryview:
        """Write a value where the next one goes."""
        room = self.room(len(value))
        room[:] = value
        return room

    def add(self, num_bytes: int) -> None:
        """Add what was written last."""
        self._ends.append(self._ends[-1] + num_bytes)

    def finish(self) -> pa.BinaryArray:
        """Make the column.

        Raises:
            ValueError: it has 2 GiB or more, which Arrow's type does not take.

        """
        buffers = [None, _offsets(self._ends), pa.py_buffer(self._content)]
        return pa.BinaryArray.from_buffers(pa.binary(), len(self._ends) - 1, buffers)


def _offsets(ends: Sequence[int]) -> pa.Buffer:
    if ends[-1] >= 2**31:
        raise ValueError(f"{ends[-1]:,} bytes in one column, of 2 GiB at most")
    return pa.py_buffer(np.array(ends, dtype=np.int32))


def read_columns(shard: Path, names: Sequence[str]) -> pa.Table:
    """Read columns of a raw shard whole."""
    with open_shard(shard) as file:
        return file.read(list(names), use_threads=False)


def open_shard(shard: Path) -> pq.ParquetFile:
    """Open a raw shard. Reading ahead in threads, as Arrow would, costs more than it saves."""
    return pq.ParquetFile(shard, memory_map=True, pre_buffer=False)
