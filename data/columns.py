"""Columns of Arrow tables, from Python's values and from our files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Arrow's own way from Python's values, `pa.array`, begins by importing pandas: 0.2 s.


def texts(values: Sequence[str | None]) -> pa.StringArray:
    """Make a column of strings."""
    is_there = np.array([value is not None for value in values], dtype=bool)
    lengths, content = _joined([(value or "").encode() for value in values])
    bitmap = None if is_there.all() else pa.py_buffer(np.packbits(is_there, bitorder="little"))
    return pa.StringArray.from_buffers(len(values), lengths, content, bitmap)


def binaries(values: Sequence[bytes]) -> pa.BinaryArray:
    """Make a column of bytes, together less than 2 GiB: such is Arrow's type."""
    return pa.BinaryArray.from_buffers(pa.binary(), len(values), [None, *_joined(values)])


def _joined(values: Sequence[bytes]) -> tuple[pa.Buffer, pa.Buffer]:
    """Where each value begins and the last one ends, and all of them, one after another."""
    ends = np.cumsum([0, *map(len, values)])
    if ends[-1] >= 2**31:
        raise ValueError(f"{ends[-1]:,} bytes in one column, of 2 GiB at most")
    return pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(values))


def read_columns(shard: Path, names: Sequence[str]) -> pa.Table:
    """Read columns of a raw shard whole."""
    with open_shard(shard) as file:
        return file.read(list(names), use_threads=False)


def open_shard(shard: Path) -> pq.ParquetFile:
    """Open a raw shard. Reading ahead in threads, as Arrow would, costs more than it saves."""
    return pq.ParquetFile(shard, memory_map=True, pre_buffer=False)
