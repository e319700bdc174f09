"""Deadlines of connections that wait for their clients, and the choice of the connection to close for a new one."""

import asyncio
import resource
from collections.abc import Iterator
from typing import Protocol

IDLE_SECONDS = 10.0
"""For the first byte of a request, on a new connection and between two requests."""
HEAD_SECONDS = 10.0
"""From the first byte of a request to the end of its headers."""
BODY_SECONDS = 30.0
"""For the whole body of a request; the app refuses a slow one before that."""
REST_SECONDS = 5.0
"""For the rest of a body that is not needed, because the request has been answered."""
UNREAD_SECONDS = 15.0
"""For a client that does not read its answers."""
END_SECONDS = 5.0
"""For a client to close its side after the endpoint's last answer."""
TICK_SECONDS = 1.0
"""Interval between two checks of the deadlines, and therefore their accuracy."""

MAX_CONNECTIONS = 4096
RESERVED_FILES = 64
"""File descriptors for other uses: the model, the log, the event loop, and connections that are closing."""


class Waiting(Protocol):
    """Connection that waits for its client."""

    def expire(self) -> None:
        """End the wait, because its deadline has passed."""

    def abort(self) -> None:
        """Close the connection at once."""


class Wait:
    """Connections that wait for the same event, longest wait first."""

    __slots__ = ("seconds", "since")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.since: dict[Waiting, float] = {}

    def oldest(self) -> Waiting | None:
        """Return the connection that waits longest, or None."""
        return next(iter(self.since), None)

    def expired(self, now: float) -> Iterator[Waiting]:
        """Remove and yield the connections whose deadline has passed."""
        while self.since:
            connection, since = next(iter(self.since.items()))
            if now - since < self.seconds:
                return
            yield connection
            self.since.pop(connection, None)


class Deadlines:
    """Deadlines of all connections of an endpoint. One timer checks them, whatever the number of connections.

    A wait is a dict, ordered by time, so that setting and dropping a deadline costs one entry.
    """

    def __init__(self, max_connections: int) -> None:
        """Allow at most `max_connections`."""
        self.max_connections = max_connections
        self.head_bytes = 0
        self.idle, self.head, self.body = Wait(IDLE_SECONDS), Wait(HEAD_SECONDS), Wait(BODY_SECONDS)
        self.rest, self.unread, self.end = Wait(REST_SECONDS), Wait(UNREAD_SECONDS), Wait(END_SECONDS)
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the timer."""
        if self._timer is None:
            self._timer = loop.call_later(TICK_SECONDS, self._check, loop)

    def make_room(self) -> bool:
        """Close the least valuable connection. Returns False if all connections are being answered."""
        for wait in (self.end, self.idle, self.rest, self.head, self.unread, self.body):
            if connection := wait.oldest():
                connection.abort()
                return True
        return False

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for wait in (self.idle, self.head, self.body, self.rest, self.unread, self.end):
            for connection in wait.expired(now):
                connection.expire()
        self._timer = loop.call_later(TICK_SECONDS, self._check, loop)


def connection_limit() -> int:
    """Return the maximum number of connections, which is lower than this process's limit on open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, files - RESERVED_FILES))
