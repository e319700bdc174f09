"""Cache of the raw shards that earlier runs wrote, with one line of JSON for each shard."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from core.files import whole_file

IN_NO_KEY = "A cache."


class ShardState(TypedDict):
    """State of a shard when it was written."""

    state: str
    """state of the source files of the shard"""
    written: list[int]
    """size and time of the shard itself"""
    rejected: list[dict[str, str]]


States = dict[str, ShardState]
"""State of each shard, by the name of the shard's file."""


def read_states(file: Path) -> States:
    """Read the states of an earlier run. Incomplete and damaged lines are ignored."""
    states: States = {}
    with suppress(FileNotFoundError):
        for line in file.read_bytes().splitlines():
            with suppress(ValueError, TypeError):
                states |= json.loads(line)
    return states


def write_states(file: Path, states: States) -> None:
    """Replace the content of the file by `states`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary:
        temporary.write_text("".join(_line(name, state) for name, state in states.items()), encoding="utf-8")


def add_state(file: Path, name: str, state: ShardState) -> None:
    """Append the state of one shard. The line starts with a newline, because a full disk may have cut the last line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write("\n" + _line(name, state))


def _line(name: str, state: ShardState) -> str:
    return json.dumps({name: state}, ensure_ascii=False) + "\n"


def is_as_written(shard: Path, known: ShardState) -> bool:
    """Whether a shard exists and has not changed since it was written."""
    return shard.is_file() and known["written"] == written(shard)


def written(shard: Path) -> list[int]:
    """Return size and time of a shard's file."""
    status = shard.stat()
    return [status.st_size, status.st_mtime_ns]
