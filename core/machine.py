"""Cores and memory that this process may use."""

import os

IN_NO_KEY = "How fast something is computed, never what."


KEPT_BYTES = 16 * 2**20
"""The process keeps freed blocks of memory up to this size."""


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next image, instead of returning the memory to the system.

    The system clears each page that it hands out again: 15 of 1,000 us per image. glibc keeps blocks up to the size of
    the largest block that was freed, at most 32 MiB, and twice as much in total. So this function frees one block,
    without writing to it. Other C libraries are not affected.
    """
    bytes(KEPT_BYTES)
