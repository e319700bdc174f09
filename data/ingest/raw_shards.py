from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError

RAW = Path("data/raw")
REJECTED_FILE = "rejected.json"
"""List of rejected files. This file is written last, so a folder with this file is complete."""
SHARD_PATTERN = "[0-9a-f]" * 16 + ".parquet"
"""Other files in the folder are not ours, and are never removed."""


def raw_shards(raw: Path) -> list[Path]:
    """List the shards in `raw`.

    Raises:
        UserError: `ingest` has not finished.

    """
    if not (raw / REJECTED_FILE).is_file():
        raise UserError(f"{raw} is missing or half-written: ingest the images with `convoy data ingest`")
    return sorted(raw.glob(SHARD_PATTERN))


def read_columns(shard: Path, names: Sequence[str]) -> pa.Table:
    """Read whole columns of a raw shard."""
    with open_shard(shard) as file:
        return file.read(list(names), use_threads=False)


def open_shard(shard: Path) -> pq.ParquetFile:
    """Open a raw shard. Arrow's read-ahead in threads costs more than it saves."""
    return pq.ParquetFile(shard, memory_map=True, pre_buffer=False)


def column(values: Sequence[str | bytes | None]) -> pa.StringArray:
    """Make a column. Arrow's usual function, `pa.array`, would import pandas: 0.9 s."""
    builder = pa.lib.StringBuilder()
    builder.append_values(values)
    return builder.finish()
