"""The others: clients that do nothing wrong, and want their answers while somebody attacks."""

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
"""After which a client gives up; the request is lost."""


@dataclass
class Answered:
    """What the others got."""

    latencies: list[float] = field(default_factory=list, repr=False)
    """seconds, of the requests that were answered with 200, from when each was due, connecting included"""
    failures: Counter[str] = field(default_factory=Counter)
    """of all others: the status, or what went wrong"""

    @property
    def num_lost(self) -> int:
        """Requests that were not answered with 200."""
        return self.failures.total()

    @property
    def num_asked(self) -> int:
        """All requests."""
        return len(self.latencies) + self.num_lost

    @property
    def p99(self) -> float:
        """Seconds; a request that was lost counts as long as a client is patient."""
        lost = [PATIENCE_SECONDS] * self.num_lost
        return float(np.percentile(self.latencies + lost, 99, method="higher"))

    def add(self, other: "Answered") -> None:
        """Count what was answered at another time too."""
        self.latencies += other.latencies
        self.failures += other.failures


def ask(call: Call, seconds: float, rate: float = 40.0) -> Answered:
    """Send requests for so many seconds, `rate` a second in even intervals; half of them on a new connection each."""
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
        """Send a request; gives the connection that it went over, to be used again."""
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
