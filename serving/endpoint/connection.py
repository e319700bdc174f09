"""Connection of a client: limits on size and time, and answers to invalid requests.

uvicorn alone stores everything that a client sends until the head of a request is complete, and waits without a limit.
"""

import asyncio
from typing import Any

import httptools
from starlette.exceptions import HTTPException
from starlette.responses import Response
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from serving.endpoint import wire
from serving.endpoint.deadlines import Deadlines, Wait
from serving.endpoint.wire import Door, Outlet, announced_length, refusal_of, serialize


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits. Requests that the door refuses are answered before the body is read."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        door: Door,
        deadlines: Deadlines,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._door, self._deadlines = door, deadlines
        self._wait: Wait | None = None
        self._is_in_head = False
        self._is_complete = True  # whether the last request has been received completely
        self._is_last = False  # whether no request is read after this one
        self._headers_size = 0
        self._unparsed = 0  # bytes received since the parser's last callback, which the parser may be storing
        self._counted = 0  # bytes of an unfinished head, counted in the sum of all connections
        self._last_words: Response | None = None  # sent after all pending answers
        self._discarded: int | None = None  # bytes received after the last answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a new connection. If there are too many connections, close the one that has been idle longest."""
        super().connection_made(transport)
        self._outlet: Any = Outlet(transport, self._close)
        self._deadlines.start(self.loop)
        has_room = len(self.connections) <= self._deadlines.max_connections or self._deadlines.make_room()
        self._wait_for(self._deadlines.idle)
        if not has_room:
            self._refuse(refusal_of(503))

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the connection's deadline and counters."""
        self._wait_for(None)
        self._count_head(0)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read data of a client, within the limits."""
        if self._discarded is not None:
            self._discarded += len(data)
            if self._discarded > wire.MAX_DISCARDED:
                self.abort()
            return
        self._unparsed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Upgrades are not supported: the request is answered like any other, and is the last one.
            self._discarded = 0
            return
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, HTTPException) else refusal_of(400))
            return
        if self._is_in_head:
            self._unparsed = max(self._unparsed, len(data) - data.rfind(b"\n") - 1)
        if self._unparsed > wire.MAX_HEADER:
            self._refuse(refusal_of(431))
        elif self._is_in_head:
            self._wait_for_head(len(data))
        elif not self._is_complete and self._wait is None:
            self._wait_for(self._deadlines.body)

    def on_message_begin(self) -> None:
        """Start a request."""
        super().on_message_begin()
        self._is_in_head, self._headers_size, self._unparsed = True, 0, 0

    def on_url(self, url: bytes) -> None:
        """Read a piece of the URL.

        Raises:
            HTTPException: 414.

        """
        self._unparsed = 0
        if len(self.url) + len(url) > wire.MAX_URL:
            raise refusal_of(414)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a header. Trailers, which follow a body, count as well, and are dropped.

        Raises:
            HTTPException: 431.

        """
        self._unparsed = 0
        size = len(name) + len(value)
        self._headers_size += size + 4
        if size > wire.MAX_HEADER or self._headers_size > wire.MAX_HEADERS or len(self.headers) >= wire.MAX_NUM_HEADERS:
            raise refusal_of(431)
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to answer a request.

        Raises:
            HTTPException: 429; too many requests were sent ahead.

        """
        self._is_in_head = self._is_complete = False
        self._unparsed = 0
        if self._counted:
            self._count_head(0)
        if self._is_last or len(self.pipeline) >= wire.MAX_AHEAD:
            raise refusal_of(429)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Read a piece of a body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Record that a request is complete."""
        self._unparsed, self._is_complete = 0, True
        super().on_message_complete()
        if self.cycle.response_complete:
            self._wait_for_next()
        elif self._wait is self._deadlines.body:
            self._wait_for(None)

    def on_response_complete(self) -> None:
        """Continue with the next request. uvicorn would start a timer here for every answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._wait_for(self._deadlines.end)
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_words:
            self._hang_up(self._last_words)
        else:
            self._wait_for_next()

    def pause_writing(self) -> None:
        """Record that the client does not read its answers."""
        super().pause_writing()
        if self._wait is None:
            self._wait_for(self._deadlines.unread)

    def resume_writing(self) -> None:
        """Record that the client reads again."""
        super().resume_writing()
        if self._wait is self._deadlines.unread:
            self._wait_for(None)
            if not self._is_answering():
                self._wait_for_next()

    def expire(self) -> None:
        """Close the connection, whose deadline has passed. A client that has begun a request gets an answer."""
        if self._wait is self._deadlines.head:
            self._refuse(refusal_of(408))
        elif self._wait in (self._deadlines.end, self._deadlines.unread):
            self.abort()
        else:
            self._wait_for(self._deadlines.end)
            self.transport.close()

    def abort(self) -> None:
        """Close the connection at once, and drop unsent data."""
        self._wait_for(None)
        self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._wait_for(None)
        cycle.transport = self._outlet
        cycle.keep_alive = cycle.keep_alive and not self.parser.should_upgrade()
        scope: Any = cycle.scope
        if refusal := self._door.admit(scope):
            self._turn_away(cycle, refusal)
        else:
            super()._start_asgi_task(cycle, app)

    def _turn_away(self, cycle: RequestResponseCycle, refusal: Response) -> None:
        """Answer a request of which only the head was read."""
        if self.flow.write_paused:
            self.abort()
            return
        if (
            not cycle.keep_alive
            or cycle.waiting_for_100_continue
            or announced_length(cycle.scope["headers"]) > wire.MAX_REST
        ):
            self._is_last = True
        cycle.response_started = cycle.response_complete = True
        self._write(refusal, with_body=cycle.scope["method"] != "HEAD")
        self.on_response_complete()

    def _refuse(self, error: HTTPException) -> None:
        """Answer an invalid request, after the answers to earlier requests."""
        if self._discarded is not None:
            return
        refusal = self._door.refuse(error)
        if not self._is_answering():
            self._hang_up(refusal)
        elif self._is_complete or self.pipeline:
            self._wait_for(None)
            self._last_words, self._discarded = refusal, 0
        else:
            # The rest of this request's body will never arrive.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._hang_up(refusal)

    def _hang_up(self, refusal: Response) -> None:
        """Send the last answer, and read on for a moment, because a client that is still sending would not see it."""
        self._count_head(0)
        if not self._is_last:
            self._is_last = True
            self._write(refusal)
        self._end()

    def _end(self) -> None:
        self._discarded = 0
        self._forget()
        self.parser = None  # type: ignore[assignment]  # the parser may store much of a header
        self._wait_for(self._deadlines.end)
        self.transport.write_eof()

    def _close(self) -> None:
        """Close after an answer, once the rest of the body has been read. After an earlier close, nginx answers 502."""
        if self._is_complete or self._is_answering():
            self.transport.close()
        else:
            self._is_last = True

    def _write(self, response: Response, *, with_body: bool = True) -> None:
        default = self.server_state.default_headers
        self.transport.write(serialize(response, default, is_last=self._is_last, with_body=with_body))

    def _wait_for_next(self) -> None:
        """Wait for the next request, or first for the rest of the last request."""
        self._forget()
        if self.flow.write_paused:
            self._wait_for(self._deadlines.unread)
        elif not self._is_complete:
            self._wait_for(self._deadlines.rest)
        elif self._is_last:
            self._end()
        else:
            self._wait_for(self._deadlines.head if self._is_in_head else self._deadlines.idle)

    def _forget(self) -> None:
        """Free the headers of the last request, because many connections may be idle for long."""
        if self.cycle is not None:
            self.cycle.scope = {}  # type: ignore[typeddict-item]
        if not self._is_in_head or self._discarded is not None:
            self.scope, self.headers = {}, []  # type: ignore[typeddict-item]

    def _wait_for_head(self, num_bytes: int) -> None:
        self._count_head(self._counted + num_bytes)
        if self._deadlines.head_bytes > wire.MAX_HEADS and self._counted > wire.MAX_HEADER:
            self._refuse(refusal_of(503))
        elif self._wait is not self._deadlines.head and not self._is_answering():
            self._wait_for(self._deadlines.head)

    def _wait_for(self, wait: Wait | None) -> None:
        if self._wait is not None:
            self._wait.since.pop(self, None)
        self._wait = wait
        if wait is not None:
            wait.since[self] = self.loop.time()

    def _count_head(self, num_bytes: int) -> None:
        self._deadlines.head_bytes += num_bytes - self._counted
        self._counted = num_bytes

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete
