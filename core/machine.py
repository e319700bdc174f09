"""Cores and memory of this machine, as far as this process may use them."""

import os

IN_NO_KEY = "How fast something is computed, never what."


KEPT_BYTES = 16 * 2**20
"""Freed blocks of memory, up to this size, stay with the process."""


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
