"""Sends the metrics in a journal to MLflow while the training continues."""

import logging
from collections.abc import Callable, Mapping, Sequence
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import Protocol, Self

from core.errors import UserError
from models.tracking.journal import Journal, Point

BATCH_POINTS = 1000
"""MLflow's limit for one request"""

_log = logging.getLogger("convoy")


class Receiver(Protocol):
    """Receiver of metrics. Both methods raise `UserError` if the receiver does not answer."""

    def last_steps(self) -> Mapping[str, int]:
        """Return the last step of each metric that has arrived."""

    def send(self, points: Sequence[Point]) -> None:
        """Send points in one request. After an error, the points may or may not have arrived."""


class Sender:
    """Sends the lines of a journal in order, from its own thread.

    If the receiver does not answer, the sender logs one warning and retries with growing pauses. The journal keeps the
    waiting lines. After a start or an error, the sender first asks which steps have arrived, and skips them. At the end
    of the block, the sender waits for up to `patience` seconds, after an error in the block for up to `grace` seconds.

    Attributes:
        has_left: whether points wait on disk after the end. `send_now` of another sender sends them.

    """

    interval = 5.0
    """seconds between two requests"""
    longest_pause = 12
    """maximum number of intervals between two attempts"""
    patience = 600.0
    """seconds; long enough for a restart of MLflow after a training of hours"""
    reminder = 60.0
    """seconds between two log lines while waiting"""
    grace = 5.0

    def __init__(self, journal: Journal, receiver: Receiver, sample: Callable[[], Mapping[str, float]] = dict) -> None:
        """Send from `journal` to `receiver`. At every interval, the metrics of `sample` are added to the journal."""
        self._journal, self._receiver, self._sample = journal, receiver, sample
        self._arrived: Mapping[str, int] | None = None
        self._offset = 0
        self._problem: UserError | None = None
        self._failure: Exception | None = None
        self.has_left = False
        self._closing, self._abandoned = Event(), Event()
        self._thread = Thread(target=self._run, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send the rest.

        Raises:
            UserError: MLflow does not answer. The journal keeps the rest.

        """
        self._closing.set()
        try:
            if error is None:
                self._wait()
            else:
                self._thread.join(0 if self._problem else self.grace)
        finally:
            self._abandoned.set()
        if error is None:
            self._account()

    def _wait(self) -> None:
        give_up = monotonic() + self.patience
        # Usually, everything has arrived after a moment.
        self._thread.join(min(self.grace, self.patience))
        while self._thread.is_alive() and (left := give_up - monotonic()) > 0:
            _log.info("train: waiting up to %.0f s more for MLflow to take the metrics", left)
            self._thread.join(min(left, self.reminder))

    def _account(self) -> None:
        """Report lines that have not arrived."""
        if self._failure:
            raise self._failure
        num_waiting = sum(1 for _ in self._journal.read(self._offset))
        if not num_waiting:
            return
        if self._problem:
            raise UserError(
                f"{self._problem}; the training is kept, {num_waiting} lines of metrics wait in {self._journal.path}, "
                "and the same command goes on from there",
                exit_code=1,
            )
        self.has_left = True
        _log.warning(
            "train: MLflow has not taken all metrics in %.0f s: %d lines wait in %s, and the next command sends them",
            self.patience,
            num_waiting,
            self._journal.path,
        )

    def _run(self) -> None:
        try:
            self._send_at_intervals()
            pause = self.grace / 10
            while not self._send_rest() and not self._abandoned.wait(pause):
                pass
        except Exception as error:  # `_account` raises the error in the training's thread
            self._failure = error

    def _send_at_intervals(self) -> None:
        num_failures = num_skipped = 0
        while not self._closing.wait(self.interval):
            self._journal.append_next(self._sample())
            if num_skipped:
                num_skipped -= 1
                continue
            num_failures = 0 if self._send_rest() else num_failures + 1
            num_skipped = min(2**num_failures, self.longest_pause) - 1

    def send_now(self) -> None:
        """Send all waiting lines in the thread of the caller.

        Raises:
            UserError: the receiver does not answer.

        """
        while batch := self._next_batch():
            points, end = batch
            self._send(points)
            self._offset = end
            if self._problem:
                _log.info("train: MLflow answers again, and takes the metrics that have waited")
                self._problem = None
            if self._abandoned.is_set():
                return

    def _send_rest(self) -> bool:
        """Send all waiting lines. Returns whether all lines have arrived."""
        try:
            self.send_now()
        except UserError as problem:
            if self._problem is None:
                _log.warning("train: %s; the training goes on, and its metrics wait on disk", problem)
            self._problem, self._arrived = problem, None
            return False
        return not self._abandoned.is_set()

    def _next_batch(self) -> tuple[list[Point], int] | None:
        points: list[Point] = []
        end = self._offset
        for line in self._journal.read(self._offset):
            if points and len(points) + len(line.points) > BATCH_POINTS:
                break
            points += line.points
            end = line.end
        return (points, end) if points else None

    def _send(self, points: Sequence[Point]) -> None:
        if self._arrived is None:
            self._arrived = self._receiver.last_steps()
        if new := [point for point in points if point.step > self._arrived.get(point.name, -1)]:
            self._receiver.send(new)
