"""What the stages of dvc.yaml share: their parameters, their messages, files that are whole or absent, memory."""

import errno
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import UserError, causes

IN_NO_KEY = "How a stage is run and told what to do."

PARAMS_FILE = Path("outputs/data-params.json")
"""The effective parameters, overrides included, that DVC tracks in place of params.yaml."""

UNTRACKED = "untracked"
"""Section of that file which dvc.yaml does not name: how a stage is run, which does not change what it makes."""

MESSAGE_FILE = "CONVOY_STAGE_MESSAGE"
"""Environment variable: where a stage leaves the line that says why it failed, for the process that asked for it."""

KEPT_BYTES = 16 * 2**20
"""Freed blocks of memory, up to this size, stay with the process."""


def run_stage(stage: Callable[[], None]) -> None:
    """Run a stage as a process: what a person can mend becomes one line and exit status 1."""
    try:
        stage()
    except UserError as error:
        _tell(str(error))
    except OSError as error:
        if not is_disk_full(error):
            raise
        _tell(DISK_FULL.format(Path.cwd()))
    except KeyboardInterrupt:
        sys.exit(130)


DISK_FULL = "the disk of {} is full: free some space and run the same command again; what was finished is kept"


def is_disk_full(error: BaseException | None) -> bool:
    """Look for the system's error among the causes of `error`: libraries wrap it, SQLite words it in its own way."""
    return any(
        getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(one)
        for one in causes(error)
    )


def _tell(message: str) -> None:
    try:
        Path(os.environ[MESSAGE_FILE]).write_text(message, encoding="utf-8", errors="backslashreplace")
    except (KeyError, OSError):
        # Nobody has asked, or the disk is too full for one line.
        print(f"convoy: {message}", file=sys.stderr)
    sys.exit(1)


def read_params(stage: str) -> dict[str, Any]:
    """Read the effective parameters of one stage: those that DVC tracks, and how it is to be run.

    Raises:
        UserError: `convoy` has not written them yet.

    """
    if not PARAMS_FILE.is_file():
        raise UserError(f"{PARAMS_FILE} is missing: `convoy data {stage}` writes it from params.yaml")
    content = json.loads(PARAMS_FILE.read_text(encoding="utf-8"))
    return {**content[stage], **content.get(UNTRACKED, {}).get(stage, {})}


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


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next image, where it would give it back to the system at first.

    The system clears each page that it gives out again: 15 of 1,000 us an image. glibc keeps blocks as large as the
    largest one that it has given back, up to 32 MiB, and twice as much in all: so it is given one, which nobody has
    written to. Elsewhere, this does nothing.
    """
    bytes(KEPT_BYTES)
