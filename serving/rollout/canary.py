"""Canary analysis: compare the answers of a new release with the answers of the stable release."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from core.sections import Section

CLOSED_BY_CLIENT = 499
"""nginx's status code for a client that disconnected before the answer."""
FEWEST = 10
"""Minimum number of answers before a canary can be withdrawn."""
LEAST_SECONDS = 0.005
"""Smaller differences in latency count as noise of a busy machine."""


class RolloutConfig(Section):
    """How a new version replaces the live version."""

    ready_seconds: float = Field(180, gt=0)
    """time limit for a new container to load its model and pass its health check"""
    canary_min_requests: int = Field(200, ge=FEWEST)
    """minimum number of answers before a canary is promoted"""
    canary_seconds: float = Field(30, ge=0)
    """minimum time before a canary is promoted"""
    canary_max_seconds: float = Field(900, gt=0)
    """a canary with too few requests is withdrawn after this time"""
    canary_max_failures: float = Field(0.01, ge=0, le=1)
    """by how much a canary's failure rate (status 400 and above) may exceed the old release's rate, beyond chance"""
    canary_max_slowdown: float = Field(1.5, ge=1)
    """maximum ratio of a canary's latency to the old release's latency, for the median and the 95th percentile"""


class Answered(NamedTuple):
    """Request that the gateway passed to a classifier."""

    release: str
    """name of the release in the gateway's routes"""
    status: int
    seconds: float
    """latency of the classifier, without the upload time of a slow client"""


@dataclass(frozen=True)
class Figures:
    """Statistics of one release's answers. Times are in seconds."""

    num_requests: int
    num_failed: int
    median: float
    p95: float

    @classmethod
    def of(cls, answers: Sequence[Answered]) -> "Figures":
        """Summarize answers. Answers whose client disconnected (499) are ignored."""
        kept = [answer for answer in answers if answer.status != CLOSED_BY_CLIENT]
        seconds = sorted(answer.seconds for answer in kept if answer.status < 400)
        num_failed = sum(answer.status >= 400 for answer in kept)
        return cls(len(kept), num_failed, _quantile(seconds, 0.5), _quantile(seconds, 0.95))

    @property
    def failure_rate(self) -> float:
        """Share of answers with status 400 or above. 4xx count, because the same clients ask both releases."""
        return self.num_failed / self.num_requests if self.num_requests else 0.0

    def __str__(self) -> str:
        times = f"median {self.median * 1000:.1f} ms, 95 % within {self.p95 * 1000:.1f} ms"
        return f"{self.num_failed} of {self.num_requests} failed, {times}"


@dataclass(frozen=True)
class Judgement:
    """Decision on a canary, and its reason."""

    verdict: Literal["wait", "promote", "withdraw"]
    why: str


def judge_canary(canary: Figures, stable: Figures, seconds: float, config: RolloutConfig) -> Judgement:
    """Decide on a canary that has received requests for `seconds`."""
    if canary.num_requests >= FEWEST and (fault := _fault(canary, stable, seconds, config)):
        return Judgement("withdraw", fault)
    if _is_enough(canary, seconds, config):
        return Judgement("promote", f"as good as the old one: {canary}; the old one: {stable}")
    if seconds >= config.canary_max_seconds:
        wanted = f"{canary.num_requests} requests in {seconds:.0f} s, {config.canary_min_requests} were wanted"
        return Judgement("withdraw", f"too few requests to judge it by: {wanted}")
    return Judgement("wait", f"{canary.num_requests} of {config.canary_min_requests} requests")


def _fault(canary: Figures, stable: Figures, seconds: float, config: RolloutConfig) -> str:
    excess = canary.failure_rate - stable.failure_rate
    if excess > config.canary_max_failures + _chance(canary, stable):
        return f"it fails more often: {canary.failure_rate:.1%} against {stable.failure_rate:.1%}; {canary}"
    if stable.num_requests - stable.num_failed < FEWEST or not _is_enough(canary, seconds, config):
        return ""
    for name, mine, old in (("median", canary.median, stable.median), ("95th of 100", canary.p95, stable.p95)):
        if mine > old * config.canary_max_slowdown and mine - old > LEAST_SECONDS:
            return f"it is slower: {name} {mine * 1000:.1f} ms against {old * 1000:.1f} ms"
    return ""


def _is_enough(canary: Figures, seconds: float, config: RolloutConfig) -> bool:
    """Whether the canary has run long enough. A new process is slow at first, and slows the old process down too."""
    return canary.num_requests >= config.canary_min_requests and seconds >= config.canary_seconds


def _chance(one: Figures, other: Figures) -> float:
    """Two standard deviations of the difference between two failure rates whose true rates are equal."""
    if not other.num_requests:
        return 0.0
    share = (one.num_failed + other.num_failed) / (one.num_requests + other.num_requests)
    return 2 * math.sqrt(share * (1 - share) * (1 / one.num_requests + 1 / other.num_requests))


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0
