"""Watches an attacked server: its memory, and whether it is still running."""

import threading
from contextlib import suppress
from typing import Self

import psutil

INTERVAL_SECONDS = 0.02


class Watch(threading.Thread):
    """Memory of a process and its children during a `with` block.

    Attributes:
        before: resident bytes at the beginning.
        peak: maximum of the resident bytes.

    """

    def __init__(self, process: psutil.Process) -> None:
        """Watch a running process."""
        super().__init__(daemon=True)
        self._process = process
        self.before = self.peak = self._resident()
        self._done = threading.Event()

    @property
    def growth(self) -> int:
        """Maximum growth in bytes."""
        return self.peak - self.before

    @property
    def is_alive_still(self) -> bool:
        """Whether the original process is still running."""
        return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE

    def _resident(self) -> int:
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def run(self) -> None:
        """Measure repeatedly."""
        while not self._done.wait(INTERVAL_SECONDS):
            with suppress(psutil.NoSuchProcess):
                self.peak = max(self.peak, self._resident())

    def __enter__(self) -> Self:
        """Start the watch."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the watch."""
        self._done.set()
        self.join()
