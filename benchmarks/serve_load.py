"""Load generator: requests in sequence, from many clients, or at a rate that does not depend on the answers.

The clients share the cores with the server, so they must be cheap. One thread sends prepared bytes, and only looks for
the end of the answer. A request takes some 0.1 ms, compared with 0.4 ms for `http.client`.
"""

import asyncio
import http.client
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self

import numpy as np
import uvloop

TIMEOUT = 60
"""Seconds."""
LENGTH = b"\r\ncontent-length:"


@dataclass(frozen=True)
class Call:
    """Request that is sent repeatedly, with the bodies in turn."""

    port: int
    path: str
    bodies: Sequence[bytes]
    headers: Mapping[str, str]

    def requests(self) -> list[bytes]:
        """Return the bytes of the request, for each body."""
        fixed = {"Host": f"127.0.0.1:{self.port}", **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        return [
            f"POST {self.path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
            for body in self.bodies
        ]


@dataclass(frozen=True)
class Load:
    """Result of many requests."""

    seconds: float
    """time from the first request to the last answer"""
    latencies: list[float] = field(repr=False)
    """latency of each request in seconds; at a rate, from the due time"""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latency, in seconds."""
        return float(np.percentile(self.latencies, percent))


_Send = Callable[[int], Awaitable[None]]
"""Sends the request with a number, which selects the body, and waits for the answer."""


def together(call: Call, num_clients: int, num_requests: int) -> Load:
    """Send requests from clients that wait for each answer before the next request (closed loop)."""

    async def client(send: _Send, first: int) -> list[float]:
        latencies = []
        for number in range(first, num_requests, num_clients):
            start = time.perf_counter()
            await send(number)
            latencies.append(time.perf_counter() - start)
        return latencies

    return _run(call, client, num_clients)


def at_rate(call: Call, rate: float, num_requests: int, num_clients: int = 64) -> Load:
    """Send requests as a Poisson process, at times that do not depend on the answers (open loop)."""
    due = np.random.default_rng(0).exponential(1 / rate, num_requests).cumsum().tolist()
    numbers = iter(range(num_requests))
    begun = time.perf_counter()

    async def client(send: _Send, _: int) -> list[float]:
        return [await _send_when_due(send, number, begun + due[number]) for number in numbers]

    return _run(call, client, num_clients)


def at_pace(call: Call, rate: float, num_requests: int, num_clients: int) -> Load:
    """Send requests from clients with equal intervals and random phases, like cameras."""
    interval = num_clients / rate
    phases = np.random.default_rng(0).uniform(0, interval, num_clients).tolist()
    begun = time.perf_counter()

    async def client(send: _Send, first: int) -> list[float]:
        turns = enumerate(range(first, num_requests, num_clients))
        return [await _send_when_due(send, number, begun + phases[first] + turn * interval) for turn, number in turns]

    return _run(call, client, num_clients)


async def _send_when_due(send: _Send, number: int, due: float) -> float:
    """Return the seconds from a request's due time to its answer."""
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    await send(number)
    return time.perf_counter() - due


def _run(call: Call, client: Callable[[_Send, int], Coroutine[Any, Any, list[float]]], num_clients: int) -> Load:
    """Run the clients, each with its own connection."""

    async def connected(number: int) -> list[float]:
        async with _connect(call) as send:
            return await client(send, number)

    async def everyone() -> Load:
        start = time.perf_counter()
        found = await asyncio.gather(*map(connected, range(num_clients)))
        return Load(time.perf_counter() - start, list(chain.from_iterable(found)))

    return uvloop.run(everyone())


class Connection(asyncio.Protocol):
    """Connection with one request in flight at a time."""

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        """Connect."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport: Any = transport
        self._answer: asyncio.Future[bytes] | None = None
        self._received = b""
        self.is_closed = False

    def close(self) -> None:
        """End the connection."""
        self.is_closed = True
        self._transport.close()

    async def ask(self, request: bytes) -> bytes:
        """Send a request, and wait for the whole answer."""
        self._answer, self._received = asyncio.get_running_loop().create_future(), b""
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        """Look for the end of the answer."""
        self._received += data
        if self._answer and not self._answer.done() and _is_whole(self._received):
            self._answer.set_result(self._received)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the pending request."""
        self.is_closed = True
        if self._answer and not self._answer.done():
            self._answer.set_exception(error or RuntimeError(f"closed after {self._received[:200]!r}"))


def _is_whole(answer: bytes) -> bool:
    """Whether these bytes are a whole answer. An answer without a length ends after its head."""
    head, end, body = answer.partition(b"\r\n\r\n")
    _, _, length = head.lower().partition(LENGTH)
    return bool(end) and len(body) >= int(length.partition(b"\r\n")[0] or 0)


def status_of(answer: bytes) -> str:
    """Read the status of a whole answer."""
    return answer.split(b" ", 2)[1].decode()


def _require_success(path: str, answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = status_of(head)
    if status != "200" or LENGTH not in head.lower():
        raise RuntimeError(f"{path} answered {status}: {body[:200]!r}")


@asynccontextmanager
async def _connect(call: Call) -> AsyncIterator[_Send]:
    requests = call.requests()
    connection = await Connection.open("127.0.0.1", call.port)

    async def send(number: int) -> None:
        request = requests[number % len(requests)]
        _require_success(call.path, await asyncio.wait_for(connection.ask(request), TIMEOUT))

    with closing(connection):
        yield send


def answers(port: int, path: str) -> bool:
    """Whether a GET gets an answer with status 200."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
