"""Ctrl-C and SIGTERM during a training: the training saves its state, and then stops."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

IN_NO_KEY = "When a training stops changes nothing that it makes."

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 - nothing has gone wrong
    """A training has saved its state and stopped, as requested by a signal."""

    def __init__(self, step: int) -> None:
        """Set the number of finished steps."""
        super().__init__(f"stopped after step {step}")
        self.step = step


class Interruption:
    """Records the first signal. The second signal interrupts at once, as usual."""

    def __init__(self) -> None:
        """Start without a request."""
        self.is_requested = False
        self._handlers: dict[signal.Signals, Any] = {}

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Restore the signal handlers at the end of the block, whoever has changed them."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread gets signals
            return
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._handlers = {}

    def take_over(self) -> None:
        """Replace the current signal handlers, such as Lightning's, which stops only between two epochs."""
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
