"""Append-only file in which each line carries the SHA-256 of the line before.

The file `*.head` beside it holds the number of lines and the SHA-256 of the last line, because a chain alone does not
show that its end is missing. A person who can write both files can forge both. A copy of the head elsewhere shows that.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from core.files import whole_file

PREVIOUS = "previous"
"""JSON key of the SHA-256 of the line before."""


class Head(BaseModel):
    """End of a chain."""

    model_config = ConfigDict(frozen=True)

    num_lines: int = 0
    sha256: str = ""
    """hash of the last line without its newline; empty if there is no line"""


class Checked(BaseModel):
    """Result of verifying a chain."""

    model_config = ConfigDict(frozen=True)

    head: Head
    """computed from the lines"""
    num_unchained: int
    """number of old lines that no hash covers"""
    faults: tuple[str, ...]
    """what was changed or is missing; empty if the chain is whole"""


def append(path: Path, line_after: Callable[[str], str]) -> None:
    """Append the line that `line_after` makes from the SHA-256 of the line before. On return, the line is on the disk.

    If somebody changed the last line, the new line carries the original line's hash, so that `verify` finds the change.

    Raises:
        OSError: the line was not written completely.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        before, written, known = path.read_bytes(), _head(path), _read_head(path)
        # A command that was killed may have written its line, but not the head.
        previous = known if known and known.num_lines >= written.num_lines else written
        line = line_after(previous.sha256).encode()
        # A full disk may have truncated the last line.
        content = line + b"\n" if not before or before.endswith(b"\n") else b"\n" + line + b"\n"
        if os.write(file, content) != len(content):
            raise OSError(f"{path}: the entry was not written whole")
        os.fsync(file)
        with whole_file(head_file(path)) as temporary:
            head = Head(num_lines=written.num_lines + 1, sha256=_sha256(line))
            temporary.write_text(head.model_dump_json(), encoding="utf-8")
    finally:
        os.close(file)


def verify(path: Path) -> Checked:
    """Check that each line carries the hash of the line before, and that no line is missing at the end."""
    lines, known = _lines(path), _read_head(path)
    links = [_link(line) for line in lines]
    first = next((number for number, link in enumerate(links) if link), None)
    faults = [] if first is None else [*_faults_of_links(path, lines, links, first)]
    if known:
        faults += _faults_of_end(path, lines, known)
    elif first is not None:
        faults.append(f"{head_file(path)} is missing: nothing tells whether the last lines are there")
    # Each line covers the line before, and the head covers the last line.
    if first is None:
        first = len(lines) if known else len(lines) + 1
    return Checked(head=_head(path), num_unchained=max(0, first - 1), faults=tuple(faults))


def _faults_of_links(path: Path, lines: list[bytes], links: list[str | None], first: int) -> Iterator[str]:
    if first == 0:
        yield f"{path} begins with a line that follows another: the lines before it are gone"
    for number in range(max(1, first), len(lines)):
        # A truncated line has no hash to compare. The next line covers it.
        if links[number] not in (None, _sha256(lines[number - 1])):
            yield f"{path}:{number + 1} does not follow line {number}: that one was changed, or lines between are gone"


def _faults_of_end(path: Path, lines: list[bytes], known: Head) -> Iterator[str]:
    if known.num_lines > len(lines):
        yield f"{path} has {len(lines)} lines, and {known.num_lines} were written: some are gone"
    elif known.num_lines and _sha256(lines[known.num_lines - 1]) != known.sha256:
        yield f"{path}:{known.num_lines} is not the line that was written there"


def head_file(path: Path) -> Path:
    """Return the head file of the chain in `path`."""
    return path.with_suffix(".head")


def _read_head(path: Path) -> Head | None:
    try:
        return Head.model_validate_json(head_file(path).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _head(path: Path) -> Head:
    lines = _lines(path)
    return Head(num_lines=len(lines), sha256=_sha256(lines[-1]) if lines else "")


def _lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n") if line] if path.is_file() else []


def _link(line: bytes) -> str | None:
    """Return the hash that a line carries: empty if the line is older than chaining, None if it is truncated."""
    try:
        return str(json.loads(line).get(PREVIOUS, ""))
    except (ValueError, AttributeError):
        return None


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
