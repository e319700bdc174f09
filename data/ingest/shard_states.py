"""What is known of the raw shards that earlier runs have written, a line of JSON each."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from core.files import whole_file

IN_NO_KEY = "A cache."


class ShardState(TypedDict):
    """What was known of a shard when it was written."""

    state: str
    """of the files behind it"""
    written: list[int]
    """its own size and time"""
    rejected: list[dict[str, str]]


States = dict[str, ShardState]
"""By the name of the shard's file."""


def read_states(file: Path) -> States:
    """Read what an earlier run knew; a line that cannot be read, as one half written, is none."""
    states: States = {}
    with suppress(FileNotFoundError):
        for line in file.read_bytes().splitlines():
            with suppress(ValueError, TypeError):
                states |= json.loads(line)
    return states


def write_states(file: Path, states: States) -> None:
    """Write all that is known in the place of what was."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary:
        temporary.write_text("".join(_line(name, state) for name, state in states.items()), encoding="utf-8")


def add_state(file: Path, name: str, state: ShardState) -> None:
    """Add one shard to what is known, on a line of its own: where the disk was full, the last may be half written."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write("\n" + _line(name, state))


def _line(name: str, state: ShardState) -> str:
    return json.dumps({name: state}, ensure_ascii=False) + "\n"


def is_as_written(shard: Path, known: ShardState) -> bool:
    """Tell the shard as it was written from one that was altered or is gone."""
    return shard.is_file() and known["written"] == written(shard)


def written(shard: Path) -> list[int]:
    """Size and time of a shard's file."""
    status = shard.stat()
    return [status.st_size, status.st_mtime_ns]
