"""How long a connection may wait for its client, and which connection is closed when there are too many."""

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
"""For the rest of a body that nobody reads, because the request was answered before."""
UNREAD_SECONDS = 15.0
"""For a client that does not read its answers."""
END_SECONDS = 5.0
"""For a client to close its side, once the endpoint has said its last word."""
TICK_SECONDS = 1.0
"""Between two looks at the deadlines: they may be missed by that much."""

MAX_CONNECTIONS = 4096
RESERVED_FILES = 64
"""File descriptors that are not for connections: the model, the log, the event loop, and connections that end."""


class Waiting(Protocol):
    """A connection that waits for its client."""

    def expire(self) -> None:
        """End the wait: its time is up."""

    def abort(self) -> None:
        """Close the connection at once."""


class Wait:
    """The connections that wait for the same thing, the one that waits longest first."""

    __slots__ = ("seconds", "since")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.since: dict[Waiting, float] = {}

    def oldest(self) -> Waiting | None:
        """Give the connection that waits longest."""
        return next(iter(self.since), None)

    def expired(self, now: float) -> Iterator[Waiting]:
        """Take out the connections whose time is up."""
        while self.since:
            connection, since = next(iter(self.since.items()))
            if now - since < self.seconds:
                return
            yield connection
            self.since.pop(connection, None)


class Deadlines:
    """The waits of all connections of an endpoint: one timer checks them, whatever the number of connections.

    A wait is a dict in the order of its entries' times, so that setting and dropping a deadline costs no more than
    an entry.
    """

    def __init__(self, max_connections: int) -> None:
        """Hold at most so many connections."""
        self.max_connections = max_connections
        self.head_bytes = 0
        self.idle, self.head, self.body = Wait(IDLE_SECONDS), Wait(HEAD_SECONDS), Wait(BODY_SECONDS)
        self.rest, self.unread, self.end = Wait(REST_SECONDS), Wait(UNREAD_SECONDS), Wait(END_SECONDS)
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Check the deadlines from now on."""
        if self._timer is None:
            self._timer = loop.call_later(TICK_SECONDS, self._check, loop)

    def make_room(self) -> bool:
        """Close the connection that is the least loss; False where all of them are being answered."""
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
    """Give the number of connections that an endpoint may hold here: less than it may open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, files - RESERVED_FILES))
