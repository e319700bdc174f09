"""Cores of this machine, as far as this process may use them."""

import os

IN_NO_KEY = "How fast something is computed, never what."


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
