"""Legitimate clients, which send requests during an attack."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import uvloop

from benchmarks.attack.clients import HOST
from benchmarks.serve_load import Call, Connection, status_of

NUM_CLIENTS = 4
PATIENCE_SECONDS = 10.0
"""A client gives up after this time, and the request is lost."""


@dataclass
class Answered:
    """Answers to the legitimate clients."""

    latencies: list[float] = field(default_factory=list, repr=False)
    """seconds from a request's due time to its answer with status 200, with the connection"""
    failures: Counter[str] = field(default_factory=Counter)
    """status or error of all other requests"""

    @property
    def num_lost(self) -> int:
        """Number of requests without an answer with status 200."""
        return self.failures.total()

    @property
    def num_asked(self) -> int:
        """Number of all requests."""
        return len(self.latencies) + self.num_lost

    @property
    def p99(self) -> float:
        """99th percentile of the latency in seconds. A lost request counts as PATIENCE_SECONDS."""
        lost = [PATIENCE_SECONDS] * self.num_lost
        return float(np.percentile(self.latencies + lost, 99, method="higher"))

    def add(self, other: "Answered") -> None:
        """Add the answers of another measurement."""
        self.latencies += other.latencies
        self.failures += other.failures


def ask(call: Call, seconds: float, rate: float = 40.0) -> Answered:
    """Send `rate` requests per second at even intervals, for `seconds`. Half of them use a new connection."""
    return uvloop.run(_Others(call, seconds, rate).run())


class _Others:
    def __init__(self, call: Call, seconds: float, rate: float) -> None:
        self._call, self._requests, self._rate = call, call.requests(), rate
        self._num_requests = max(NUM_CLIENTS, round(seconds * rate))
        self._answered = Answered()

    async def run(self) -> Answered:
        begun = time.perf_counter()
        await asyncio.gather(*(self._client(number, begun) for number in range(NUM_CLIENTS)))
        return self._answered

    async def _client(self, first: int, begun: float) -> None:
        connection: Connection | None = None
        for number in range(first, self._num_requests, NUM_CLIENTS):
            due = begun + number / self._rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            connection = await self._ask(number, due, connection)
            if connection and first % 2:
                connection.close()
                connection = None
        if connection:
            connection.close()

    async def _ask(self, number: int, due: float, connection: Connection | None) -> Connection | None:
        """Send a request. Returns the connection, for reuse."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if connection is None or connection.is_closed:
                    connection = await Connection.open(HOST, self._call.port)
                status = status_of(await connection.ask(self._requests[number % len(self._requests)]))
        except TimeoutError:
            status = f"no answer in {PATIENCE_SECONDS:g} s"
        except (OSError, RuntimeError) as error:
            status = f"{type(error).__name__}: {error}"[:80]
        if status == "200":
            self._answered.latencies.append(time.perf_counter() - due)
            return connection
        self._answered.failures[status] += 1
        if connection:
            connection.close()
        return None
