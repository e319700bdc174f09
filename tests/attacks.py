"""What is asserted of any endpoint that is attacked, in a process or in a container, however fast the machine is."""

import json
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from test_serving_classifier import BLUE, OCTETS

from benchmarks.attack.clients import Attacking, Outcome, Size
from benchmarks.attack.others import ask as ask_politely
from benchmarks.attack.overload import closed_loop
from benchmarks.serve_load import Call

FILES = 1024
"""What a server may open where nobody has raised its limit."""
ENDLESS = {
    "endless-url": {414},
    "endless-header": {431},
    "many-headers": {431},
    # 503: there is no room for another large body
    "endless-body": {413, 503},
    "endless-chunk": {400, 413, 431},
    "trailers": {400, 413, 431},
}
"""Attacks that a server ends, and how it may say so."""
SLOW = {
    # more than there can be
    "silent": FILES + 200,
    "slow-header": 50,
    "slow-body": 50,
    "unread": 10,
}
"""Attacks that a server ends in time, and their connections."""
NUM_INSISTENT = 640


@contextmanager
def file_limit(number: int) -> Iterator[None]:
    """What is started in the block may open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(number, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def call_to(port: int) -> Call:
    return Call(port, "/classify", [BLUE], OCTETS)


def attack_all(port: int, sizes: dict[str, Size], seconds: float) -> dict[str, Outcome]:
    """Attack in all these ways at once; in the first `seconds` others ask, and each of them is answered."""
    with ExitStack() as stack:
        attacks = {name: stack.enter_context(Attacking(name, port, size)) for name, size in sizes.items()}
        assert ask_politely(call_to(port), seconds, rate=20).failures == {}
    return {name: attack.outcome for name, attack in attacks.items()}


def check_endless_requests(port: int) -> None:
    outcomes = attack_all(port, dict.fromkeys(ENDLESS, Size(connections=10, seconds=30)), seconds=2)
    for name, outcome in outcomes.items():
        assert (outcome.opened, outcome.left_open) == (10, 0), name
        assert outcome.statuses, name
        assert outcome.statuses.keys() <= ENDLESS[name], name
        for answer in outcome.answers.values():
            check_problem(answer)


def check_slow_clients(port: int) -> None:
    sizes = {name: Size(connections, seconds=60) for name, connections in SLOW.items()}
    outcomes = attack_all(port, sizes, seconds=5)
    assert {name: outcome.left_open for name, outcome in outcomes.items()} == dict.fromkeys(SLOW, 0)


def check_pipelined_requests(port: int) -> None:
    (outcome,) = attack_all(port, {"pipelined": Size(connections=10, seconds=3)}, seconds=2).values()
    assert outcome.statuses.keys() <= {200}


def check_overload(port: int) -> None:
    came = closed_loop(call_to(port), NUM_INSISTENT, seconds=3)
    assert came.failures == {}
    assert came.answered
    assert came.refused
    assert ask_politely(call_to(port), seconds=1, rate=20).failures == {}


def check_problem(answer: str) -> None:
    """A refusal is JSON."""
    head, _, body = answer.partition("\r\n\r\n")
    assert json.loads(body).keys() == {"error", "detail"}
    assert {"content-type: application/json", "x-content-type-options: nosniff"} <= set(head.lower().split("\r\n"))
