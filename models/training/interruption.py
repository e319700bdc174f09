"""Ctrl-C and SIGTERM while a training runs: it is asked to stop, and does so when its state is written."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

IN_NO_KEY = "When a training stops changes nothing that it makes."

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 - nothing has gone wrong
    """A training has stopped because somebody asked for it, after its state was written."""

    def __init__(self, step: int) -> None:
        """Tell after how many steps."""
        super().__init__(f"stopped after step {step}")
        self.step = step


class Interruption:
    """Notes the first signal; the second one interrupts at once, as without it."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.is_requested = False
        self._handlers: dict[signal.Signals, Any] = {}

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Restore the handlers of the signals when the block is left, whoever has changed them."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals come to the main thread alone
            return
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._handlers = {}

    def take_over(self) -> None:
        """Take the signals from those that listen to them now, such as Lightning, which stops between two epochs."""
        for number in self._handlers:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.is_requested:
            self.is_requested = True
            return
        handler: Callable[[int, FrameType | None], Any] | Any = self._handlers[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        raise KeyboardInterrupt
