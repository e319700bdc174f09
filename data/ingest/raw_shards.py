from pathlib import Path

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
