"""Files that are whole or absent, and what a full disk looks like."""

import errno
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import causes


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


DISK_FULL = "the disk of {} is full: free some space and run the same command again; what was finished is kept"


def is_disk_full(error: BaseException | None) -> bool:
    """Look for the system's error among the causes of `error`: libraries wrap it, SQLite words it in its own way."""
    return any(
        getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(one)
        for one in causes(error)
    )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, which becomes `path` only when all of it is written.

    The name is this writer's alone: on a cluster, a worker that was given up for dead may still write the same file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed has left of whole files.

    A writer that is alive after all fails when it renames its file, and leaves the one in place as it is.
    """
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)
