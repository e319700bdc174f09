"""Overload: far more clients than the server can answer. Refused clients do not back off."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import uvloop

from benchmarks.attack.clients import HOST, raise_file_limit
from benchmarks.serve_load import Call, Connection, status_of

PATIENCE_SECONDS = 20.0
"""A client gives up after this time."""
REFUSALS = ("429", "503")
MAX_WAITING = 2000
"""Maximum number of waiting requests in `open_loop`. Requests beyond this number are not sent."""


@dataclass
class Overload:
    """Outcome of an overload."""

    seconds: float
    answered: list[float] = field(default_factory=list, repr=False)
    """latency in seconds of each request with status 200"""
    refused: list[float] = field(default_factory=list, repr=False)
    """latency in seconds of each refusal (429 or 503)"""
    failures: Counter[str] = field(default_factory=Counter)
    """other statuses, and errors"""
    num_in_time: int = 0
    """number of answers with status 200 before the end"""
    unsent: int = 0
    """number of due requests that were not sent"""

    @property
    def goodput(self) -> float:
        """Answers with status 200 per second."""
        return self.num_in_time / self.seconds

    @property
    def offered(self) -> float:
        """Sent requests per second."""
        return (len(self.answered) + len(self.refused) + self.failures.total()) / self.seconds

    @property
    def refusal_p99(self) -> float:
        """99th percentile of the latency of refusals in seconds; NaN without refusals."""
        return float(np.percentile(self.refused, 99)) if self.refused else float("nan")


class _Clients:
    def __init__(self, call: Call, seconds: float) -> None:
        self._port, self._requests = call.port, call.requests()
        self._until = time.perf_counter() + seconds
        self.came = Overload(seconds)

    async def insist(self, first: int) -> None:
        """Act as one client that sends requests repeatedly."""
        connection, number = None, first
        while time.perf_counter() < self._until:
            connection = await self._ask(number, connection)
            number += 1
        if connection:
            connection.close()

    async def come(self, rate: float) -> None:
        """Act as new clients, which arrive at random times."""
        rng, due, waiting = np.random.default_rng(0), time.perf_counter(), set[asyncio.Task[None]]()
        number = 0
        while (due := due + rng.exponential(1 / rate)) < self._until:
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            if len(waiting) == MAX_WAITING:
                self.came.unsent += 1
                await asyncio.sleep(0)
                continue
            task = asyncio.create_task(self._ask_once(number))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            number += 1
        await asyncio.gather(*waiting)

    async def _ask_once(self, number: int) -> None:
        if connection := await self._ask(number, None):
            connection.close()

    async def _ask(self, number: int, connection: Connection | None) -> Connection | None:
        """Send a request, over a new connection if needed. Returns the connection if it can be reused."""
        start = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if connection is None:
                    connection = await Connection.open(HOST, self._port)
                answer = await connection.ask(self._requests[number % len(self._requests)])
        except (OSError, RuntimeError) as error:  # TimeoutError is an OSError
            self.came.failures[type(error).__name__] += 1
            if connection:
                connection.close()
            return None
        self._count(status_of(answer), time.perf_counter() - start)
        if b"\r\nconnection: close" in answer.partition(b"\r\n\r\n")[0].lower():
            connection.close()
        return None if connection.is_closed else connection

    def _count(self, status: str, seconds: float) -> None:
        if status == "200":
            self.came.answered.append(seconds)
            self.came.num_in_time += time.perf_counter() < self._until
        elif status in REFUSALS:
            self.came.refused.append(seconds)
        else:
            self.came.failures[status] += 1


def closed_loop(call: Call, num_clients: int, seconds: float) -> Overload:
    """Run clients for `seconds`. Each client has its own connection, and sends its next request after each answer."""

    async def everyone() -> Overload:
        clients = _Clients(call, seconds)
        await asyncio.gather(*(clients.insist(number) for number in range(num_clients)))
        return clients.came

    raise_file_limit()
    return uvloop.run(everyone())


def open_loop(call: Call, rate: float, seconds: float) -> Overload:
    """Let `rate` clients per second arrive, each with one request on a new connection, whatever earlier clients got."""

    async def everyone() -> Overload:
        clients = _Clients(call, seconds)
        await clients.come(rate)
        return clients.came

    raise_file_limit()
    return uvloop.run(everyone())
