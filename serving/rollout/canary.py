"""Whether a new release answers as well as the old one, from the requests that both have had."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from core.sections import Section

CLOSED_BY_CLIENT = 499
"""nginx's own status where a client did not wait for the answer."""
FEWEST = 10
"""So many answers are looked at before a canary is withdrawn."""
LEAST_SECONDS = 0.005
"""Answers that are slower by less are not slower: a busy machine does as much."""


class RolloutConfig(Section):
    """How a new version takes over from the old one."""

    ready_seconds: float = Field(180, gt=0)
    """a new container has so long to load its model and pass its test"""
    canary_min_requests: int = Field(200, ge=FEWEST)
    """a canary is promoted after so many answers at least"""
    canary_seconds: float = Field(30, ge=0)
    """and after so many seconds at least"""
    canary_max_seconds: float = Field(900, gt=0)
    """a canary that has not had its requests by then is withdrawn"""
    canary_max_failures: float = Field(0.01, ge=0, le=1)
    """share of a canary's answers that may fail (status 400 and above) beyond the old one's share, and beyond chance"""
    canary_max_slowdown: float = Field(1.5, ge=1)
    """how many times as long a canary may take, in the median and for the 95th of 100 answers"""


class Answered(NamedTuple):
    """A request that the gateway has passed on."""

    release: str
    """the name in the gateway's routes"""
    status: int
    seconds: float
    """from the connection to the classifier to the last byte of its answer: a slow client costs it nothing"""


@dataclass(frozen=True)
class Figures:
    """What the answers of one release come to."""

    num_requests: int
    num_failed: int
    median: float
    p95: float

    @classmethod
    def of(cls, answers: Sequence[Answered]) -> "Figures":
        """Sum answers up; those that their clients did not wait for count for nothing."""
        kept = [answer for answer in answers if answer.status != CLOSED_BY_CLIENT]
        seconds = sorted(answer.seconds for answer in kept if answer.status < 400)
        num_failed = sum(answer.status >= 400 for answer in kept)
        return cls(len(kept), num_failed, _quantile(seconds, 0.5), _quantile(seconds, 0.95))

    @property
    def failure_rate(self) -> float:
        """Share of the answers that failed: those with a 4xx too, because the same clients ask both releases."""
        return self.num_failed / self.num_requests if self.num_requests else 0.0

    def __str__(self) -> str:
        times = f"median {self.median * 1000:.1f} ms, 95 % within {self.p95 * 1000:.1f} ms"
        return f"{self.num_failed} of {self.num_requests} failed, {times}"


@dataclass(frozen=True)
class Judgement:
    """What is to become of a canary, and why."""

    verdict: Literal["wait", "promote", "withdraw"]
    why: str


def judge_canary(canary: Figures, stable: Figures, seconds: float, config: RolloutConfig) -> Judgement:
    """Decide on a canary that has had its share of requests for so many seconds."""
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
    """Whether the trial is over, and times can be compared: a new process is slow at first, and slows the old one."""
    return canary.num_requests >= config.canary_min_requests and seconds >= config.canary_seconds


def _chance(one: Figures, other: Figures) -> float:
    """Two standard deviations of the difference that chance alone makes between two shares of failures."""
    if not other.num_requests:
        return 0.0
    share = (one.num_failed + other.num_failed) / (one.num_requests + other.num_requests)
    return 2 * math.sqrt(share * (1 - share) * (1 / one.num_requests + 1 / other.num_requests))


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0
