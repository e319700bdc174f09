from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError

RAW = Path("data/raw")
REJECTED_FILE = "rejected.json"
"""Lists what could not be read. It is written last, so that a folder that has it is complete."""
SHARD_PATTERN = "[0-9a-f]" * 16 + ".parquet"
"""Whatever else lies in the folder is not ours to remove."""


def raw_shards(raw: Path) -> list[Path]:
    """List the shards in `raw`.

    Raises:
        UserError: `ingest` has not finished.

    """
    if not (raw / REJECTED_FILE).is_file():
        raise UserError(f"{raw} is missing or half-written: ingest the images with `convoy data ingest`")
    return sorted(raw.glob(SHARD_PATTERN))


def read_columns(shard: Path, names: Sequence[str]) -> pa.Table:
    """Read columns of a raw shard whole."""
    with open_shard(shard) as file:
        return file.read(list(names), use_threads=False)


def open_shard(shard: Path) -> pq.ParquetFile:
    """Open a raw shard. Reading ahead in threads, as Arrow would, costs more than it saves."""
    return pq.ParquetFile(shard, memory_map=True, pre_buffer=False)


def column(values: Sequence[str | bytes | None]) -> pa.StringArray:
    """Make a column. Arrow's usual way, `pa.array`, begins by importing pandas: 0.9 s."""
    builder = pa.lib.StringBuilder()
    builder.append_values(values)
    return builder.finish()
