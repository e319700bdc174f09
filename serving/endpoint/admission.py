"""Who is let in, decided by the head of a request, before its body is read: room in the queue, and quotas."""

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
"""The route of every path that is not one of the app's: strangers try thousands, and each would be kept for ever."""
MAX_QUOTAS = 1000
"""Clients whose quotas are kept; the one that was let in first is forgotten first."""


class Asks(Enum):
    """What a request asks for."""

    NOTHING = "nothing that costs"
    IMAGES = "predictions"
    EXPLANATION = "an explanation"


@dataclass(slots=True, eq=False)
class Visit:
    """A request from its head to its answer."""

    id: bytes
    started: float
    """seconds, by `time.perf_counter`"""
    client: str | None = None
    """the name of its token; None where it needs none"""
    num_images: int = 0
    arrived_at: float | None = None
    """when its body was here; a client that sends slowly is not the endpoint's time"""
    quota: "Quota | None" = None
    room: "Room | None" = None
    """where it keeps a place until what came of its body is read"""
    path: str = OTHER
    """of its route"""
    is_explanation: bool = False
    """whether its client's quota counts it as an explanation that is worked on"""

    def arrived(self, num_images: int = 1) -> None:
        """Note that its body is here: from now on the queue itself counts its images."""
        if self.room:
            self.room.leave(self)
        self.num_images, self.arrived_at = num_images, time.perf_counter()
        if self.quota and self.quota.images:
            self.quota.images.take(num_images - 1)  # one was taken as it was let in

    def leave(self) -> None:
        """Give back what it holds."""
        if self.room:
            self.room.leave(self)
        if self.quota and self.is_explanation:
            self.quota.explanations -= 1


class Room:
    """The room in a queue, less what requests will take whose bodies came with their heads.

    A body that comes later has no place until it is here: clients that send slowly would hold all places.
    """

    def __init__(self, what: str, num_waiting: Callable[[], int], capacity: int) -> None:
        """Let in as long as less than `capacity` of `what` is waiting."""
        self._what, self._num_waiting, self._capacity = what, num_waiting, capacity
        self._arriving: set[Visit] = set()

    def enter(self, visit: Visit) -> None:
        """Keep a place until the body is read, or else for two turns of the event loop.

        Raises:
            OverloadedError: there is none.

        """
        if self._num_waiting() + len(self._arriving) >= self._capacity:
            raise OverloadedError(f"too many {self._what} at once: try again in a moment")
        self._arriving.add(visit)
        visit.room = self
        # In the next turn the app reads what came with the head.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self.leave, visit)

    def leave(self, visit: Visit) -> None:
        """Give the place back: the body is here, or takes its time, or will not come."""
        self._arriving.discard(visit)


class Bucket:
    """A token bucket: filled at `rate` a second, with room for one second and for one request at least."""

    def __init__(self, rate: float) -> None:
        self._rate, self._capacity = rate, max(1.0, rate)
        self._level, self._filled_at = self._capacity, time.monotonic()

    def seconds_left(self) -> float:
        """Give the seconds until there is something to take."""
        now = time.monotonic()
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._rate)
        self._filled_at = now
        return max(0.0, (1 - self._level) / self._rate)

    def take(self, number: float) -> None:
        """Take some; what is taken in excess delays the next."""
        self._level -= number


@dataclass(slots=True)
class Quota:
    """What one client may still ask for."""

    requests: Bucket | None
    images: Bucket | None
    explanations: int = 0
    """that it waits for"""


class Quotas:
    """What each client may ask for, by the name of its token."""

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
            HTTPException: 429; the client has asked for too much.

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
