"""Admission of requests by their head, before the body is read: room in the queue, and quotas."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from starlette.exceptions import HTTPException

from serving.config import ServingConfig
from serving.endpoint.batching import OverloadedError

OTHER = "other"
"""Route of all unknown paths, because metrics would keep each of the thousands of paths that strangers try."""
MAX_QUOTAS = 1000
"""Maximum number of clients with stored quotas. The oldest client is dropped first."""


class Asks(Enum):
    """Kind of work that a request asks for."""

    NOTHING = "nothing that costs"
    IMAGES = "predictions"
    EXPLANATION = "an explanation"


@dataclass(slots=True, eq=False)
class Visit:
    """Request from its head to its answer."""

    id: bytes
    started: float
    """time in seconds, by `time.perf_counter`"""
    client: str | None = None
    """name of the token; None if the request needs none"""
    num_images: int = 0
    arrived_at: float | None = None
    """time at which the body was complete; the upload of a slow client does not count as the endpoint's time"""
    quota: "Quota | None" = None
    room: "Room | None" = None
    """queue that holds a place for the request until its body is read"""
    path: str = OTHER
    """path of the route"""
    is_explanation: bool = False
    """whether the client's quota counts the request as a running explanation"""

    def arrived(self, num_images: int = 1) -> None:
        """Record that the body is complete. From now on, the queue itself counts the images."""
        if self.room:
            self.room.leave(self)
        self.num_images, self.arrived_at = num_images, time.perf_counter()
        if self.quota and self.quota.images:
            self.quota.images.take(num_images - 1)  # admission has taken one image

    def leave(self) -> None:
        """Release the request's place and quota."""
        if self.room:
            self.room.leave(self)
        if self.quota and self.is_explanation:
            self.quota.explanations -= 1


class Room:
    """Free places in a queue, minus the places for requests whose bodies came with their heads.

    A later body gets a place only when it is complete. Otherwise, slow clients would occupy all places.
    """

    def __init__(self, what: str, num_waiting: Callable[[], int], capacity: int) -> None:
        """Admit requests while fewer than `capacity` of `what` are waiting."""
        self._what, self._num_waiting, self._capacity = what, num_waiting, capacity
        self._arriving: set[Visit] = set()

    def enter(self, visit: Visit) -> None:
        """Hold a place until the body is read, or for at most two turns of the event loop.

        Raises:
            OverloadedError: there is no free place.

        """
        if self._num_waiting() + len(self._arriving) >= self._capacity:
            raise OverloadedError(f"too many {self._what} at once: try again in a moment")
        self._arriving.add(visit)
        visit.room = self
        # In the next turn, the app reads the data that came with the head.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self.leave, visit)

    def leave(self, visit: Visit) -> None:
        """Release the place: the body is complete, is slow, or will not arrive."""
        self._arriving.discard(visit)


class Bucket:
    """Token bucket, filled at `rate` per second, with a capacity of one second, and of at least one request."""

    def __init__(self, rate: float) -> None:
        self._rate, self._capacity = rate, max(1.0, rate)
        self._level, self._filled_at = self._capacity, time.monotonic()

    def seconds_left(self) -> float:
        """Return the seconds until a token is available."""
        now = time.monotonic()
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._rate)
        self._filled_at = now
        return max(0.0, (1 - self._level) / self._rate)

    def take(self, number: float) -> None:
        """Take tokens. The level may become negative, which delays the next request."""
        self._level -= number


@dataclass(slots=True)
class Quota:
    """Remaining quota of a client."""

    requests: Bucket | None
    images: Bucket | None
    explanations: int = 0
    """number of running explanations"""


class Quotas:
    """Quotas of all clients, by the names of their tokens."""

    def __init__(self, config: ServingConfig) -> None:
        """Limit each client as configured."""
        self._requests = config.token_requests_per_second
        self._images = config.token_images_per_second
        self._explanations = config.token_explanations
        self._is_limited = bool(self._requests or self._images or self._explanations)
        self._quotas: dict[str, Quota] = {}

    def check(self, visit: Visit, asks: Asks) -> None:
        """Count a request of the client `visit.client`.

        Raises:
            HTTPException: 429; the client has exceeded a quota.

        """
        if not self._is_limited or visit.client is None:
            return
        quota = visit.quota = self._of(visit.client)
        if quota.requests and (seconds := quota.requests.seconds_left()):
            raise _too_many(f"{self._requests:g} requests a second", seconds)
        if quota.images and asks is not Asks.NOTHING and (seconds := quota.images.seconds_left()):
            raise _too_many(f"{self._images:g} images a second", seconds)
        if self._explanations and asks is Asks.EXPLANATION and quota.explanations >= self._explanations:
            raise _too_many(f"{self._explanations} explanations at a time", 1)
        if quota.requests:
            quota.requests.take(1)
        if quota.images and asks is not Asks.NOTHING:
            quota.images.take(1)
        if asks is Asks.EXPLANATION:
            quota.explanations += 1
            visit.is_explanation = True

    def _of(self, client: str) -> Quota:
        if client not in self._quotas:
            if len(self._quotas) >= MAX_QUOTAS:
                del self._quotas[next(iter(self._quotas))]
            self._quotas[client] = Quota(
                requests=Bucket(self._requests) if self._requests else None,
                images=Bucket(self._images) if self._images else None,
            )
        return self._quotas[client]


def _too_many(limit: str, seconds: float) -> HTTPException:
    detail = f"one token may ask for {limit}: try again later"
    return HTTPException(429, detail, {"Retry-After": str(math.ceil(seconds))})
