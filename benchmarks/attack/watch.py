"""The watch over a server that is attacked: how much memory it takes, and whether it is still there."""

import threading
from contextlib import suppress
from typing import Self

import psutil

INTERVAL_SECONDS = 0.02


class Watch(threading.Thread):
    """The memory of a process and its children during a `with` block.

    Attributes:
        before: resident bytes at the beginning.
        peak: the most of them at any time.

    """

    def __init__(self, process: psutil.Process) -> None:
        """Watch a process that runs."""
        super().__init__(daemon=True)
        self._process = process
        self.before = self.peak = self._resident()
        self._done = threading.Event()

    @property
    def growth(self) -> int:
        """Bytes by which it grew at the highest."""
        return self.peak - self.before

    @property
    def is_alive_still(self) -> bool:
        """Whether the process is the same as at the beginning, and runs."""
        return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE

    def _resident(self) -> int:
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def run(self) -> None:
        """Look at it again and again."""
        while not self._done.wait(INTERVAL_SECONDS):
            with suppress(psutil.NoSuchProcess):
                self.peak = max(self.peak, self._resident())

    def __enter__(self) -> Self:
        """Begin."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._done.set()
        self.join()
