"""What a client may send on a connection besides bodies, who lets requests in, and the words for what is refused."""

from collections.abc import Iterable
from typing import Protocol

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from serving.body import RETRY

MAX_URL = 8 * 1024
MAX_HEADER = 16 * 1024
MAX_HEADERS = 64 * 1024
"""Bytes of a request line, of each header with its name, and of all headers."""
MAX_HEADS = 16_000_000
"""Bytes of the unfinished heads of all connections."""
MAX_NUM_HEADERS = 100
MAX_AHEAD = 16
"""Requests that a client may send before the first of them is answered."""
MAX_REST = 256 * 1024
"""Bytes of a refused body that are read, so that the connection can be used again; after a longer one it is closed."""
MAX_DISCARDED = 4 * 1024 * 1024
"""Bytes that a client may still send once the endpoint has said its last word."""

REASONS = {
    400: "this is no HTTP/1.1 request",
    408: "the head of the request did not arrive in time",
    414: f"the URL is longer than {MAX_URL:,} bytes",
    429: f"more than {MAX_AHEAD} requests were sent ahead on one connection",
    431: f"at most {MAX_NUM_HEADERS} headers are read, of {MAX_HEADER:,} bytes each and {MAX_HEADERS:,} in all",
    503: "too many connections: try again in a moment",
}
"""Why a connection is refused, by the status of the answer."""


class Door(Protocol):
    """Who decides what is let in."""

    def admit(self, scope: Scope) -> Response | None:
        """Let a request in whose head has been read, or give the answer that refuses it."""

    def refuse(self, error: HTTPException) -> Response:
        """Give the answer to what is no request."""


def refusal_of(status: int) -> HTTPException:
    """Make the error that refuses a connection with `status`."""
    # A new one each time: an exception that is raised again keeps the frames of all times before.
    return HTTPException(status, REASONS[status], RETRY if status in (429, 503) else None)


def announced_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Give the number of bytes that a body is announced to have; 0 where it is not."""
    value = next((value for name, value in headers if name == b"content-length"), b"0")
    return int(value[:19]) if value.isdigit() else 0
