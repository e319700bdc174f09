"""Limits of a connection, admission of requests, refusals, and answers as bytes."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serving.endpoint.request_body import RETRY

MAX_URL = 8 * 1024
MAX_HEADER = 16 * 1024
MAX_HEADERS = 64 * 1024
"""Maximum bytes of a request line, of each header with its name, and of all headers."""
MAX_HEADS = 16_000_000
"""Maximum bytes of the unfinished heads of all connections."""
MAX_NUM_HEADERS = 100
MAX_AHEAD = 16
"""Maximum number of requests that a client may send before the first answer."""
MAX_REST = 256 * 1024
"""Maximum bytes of a refused body that are read, to reuse the connection. After a longer body, it is closed."""
MAX_DISCARDED = 4 * 1024 * 1024
"""Maximum bytes that a client may send after the endpoint's last answer."""

REASONS = {
    400: "this is no HTTP/1.1 request",
    408: "the head of the request did not arrive in time",
    414: f"the URL is longer than {MAX_URL:,} bytes",
    429: f"more than {MAX_AHEAD} requests were sent ahead on one connection",
    431: f"at most {MAX_NUM_HEADERS} headers are read, of {MAX_HEADER:,} bytes each and {MAX_HEADERS:,} in all",
    503: "too many connections: try again in a moment",
}
"""Reason for refusing a connection, by status."""


class Door(Protocol):
    """Decides which requests are admitted."""

    def admit(self, scope: Scope) -> Response | None:
        """Admit a request whose head has been read, or return the answer that refuses the request."""

    def refuse(self, error: HTTPException) -> Response:
        """Return the answer to an invalid request."""


class Outlet:
    """Transport for the answer to a request, with the connection's own `close`."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write, self.is_closing, self.close = transport.write, transport.is_closing, close


def refusal_of(status: int) -> HTTPException:
    """Make the error that refuses a connection with `status`."""
    # A new exception each time, because an exception that is raised again keeps all earlier frames.
    return HTTPException(status, REASONS[status], RETRY if status in (429, 503) else None)


def announced_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the announced length of a body in bytes, or 0 without an announcement."""
    value = next((value for name, value in headers if name == b"content-length"), b"0")
    return int(value[:19]) if value.isdigit() else 0


def serialize(
    response: Response, default_headers: Iterable[tuple[bytes, bytes]], *, is_last: bool, with_body: bool
) -> bytes:
    """Write an answer as HTTP/1.1. With `is_last`, the connection closes after the answer."""
    lines = [STATUS_LINE[response.status_code]]
    for name, value in (*default_headers, *response.raw_headers):
        lines += (name, b": ", value, b"\r\n")
    if is_last:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    if with_body:
        lines.append(bytes(response.body))
    return b"".join(lines)
