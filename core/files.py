"""Files that are complete or absent, and the errors of a full disk."""

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
    """Whether `error` or one of its causes is a full disk. Libraries wrap the system's error. SQLite words its own."""
    return any(
        getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(one)
        for one in causes(error)
    )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. The file is renamed to `path` when the block ends without an error.

    The temporary path is unique: on a cluster, a worker that was given up for dead may still write the same file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a killed process left in `folder`.

    If a writer is still alive, its rename fails, and the existing file stays.
    """
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)
