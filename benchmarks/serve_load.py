"""Requests to a server: one after another, from many clients at once, or at a rate that does not wait for answers."""

import http.client
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np

TIMEOUT = 60
"""Seconds."""


@dataclass(frozen=True)
class Call:
    """A request that is sent again and again, with one body after another."""

    port: int
    path: str
    bodies: Sequence[bytes]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Load:
    """What came of many requests."""

    seconds: float
    """from the first to the last"""
    latencies: list[float] = field(repr=False)
    """seconds, of each request; where they came at a rate, from when it was due"""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Latency in seconds that so many percent of the requests stay under."""
        return float(np.percentile(self.latencies, percent))


def together(call: Call, num_clients: int, num_requests: int) -> Load:
    """Send so many requests from clients each of which waits for its answer before it sends the next one."""

    def client(first: int) -> list[float]:
        with _connected(call) as send:
            return [_seconds(send, number) for number in range(first, num_requests, num_clients)]

    with ThreadPoolExecutor(num_clients) as clients:
        start = time.perf_counter()
        latencies = [latency for found in clients.map(client, range(num_clients)) for latency in found]
        return Load(time.perf_counter() - start, latencies)


def at_rate(call: Call, rate: float, num_requests: int, num_clients: int = 64) -> Load:
    """Send requests at times that do not depend on the answers, as many strangers do: a Poisson process."""
    due = np.random.default_rng(0).exponential(1 / rate, num_requests).cumsum().tolist()
    numbers = iter(range(num_requests))
    start = time.perf_counter()

    def client(_: int) -> list[float]:
        with _connected(call) as send:
            return [late(send, number) for number in numbers]

    def late(send: Callable[[int], None], number: int) -> float:
        time.sleep(max(0.0, start + due[number] - time.perf_counter()))
        send(number)
        return time.perf_counter() - start - due[number]

    with ThreadPoolExecutor(num_clients) as clients:
        latencies = [latency for found in clients.map(client, range(num_clients)) for latency in found]
        return Load(time.perf_counter() - start, latencies)


@contextmanager
def _connected(call: Call) -> Iterator[Callable[[int], None]]:
    """Give a function that sends a request, its number modulo the bodies, and waits for the answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", call.port, timeout=TIMEOUT)) as connection:

        def send(number: int) -> None:
            connection.request("POST", call.path, call.bodies[number % len(call.bodies)], dict(call.headers))
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise RuntimeError(f"{call.path} answered {response.status}: {answer[:200]!r}")

        yield send


def _seconds(send: Callable[[int], None], number: int) -> float:
    start = time.perf_counter()
    send(number)
    return time.perf_counter() - start


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200 by now."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
