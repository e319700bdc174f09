"""Attacks on Convoy and its peers, and their effect on legitimate clients: `python -m benchmarks.attack`."""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.attack.clients import ATTACKS, BOMBS, CORPUS, UPLOADS, Attacking, Size
from benchmarks.attack.corpus import hostile_files
from benchmarks.attack.others import Answered, ask
from benchmarks.attack.overload import Overload, closed_loop, open_loop
from benchmarks.attack.subjects import CONTAINER, CONVOY, Subject, subjects
from benchmarks.attack.uploads import measure_uploads
from benchmarks.made_photos import IMAGENET_SIZE, make_photo
from benchmarks.report import Report, run
from serving.targets import TARGETS

NUM_IMAGES = 16
CALM_SECONDS, ATTACK_SECONDS = 2.0, 5.0
"""How long the legitimate clients send requests before an attack, and during an attack."""
MARGIN_SECONDS = 1.0
"""An attack lasts longer than the legitimate clients' requests by this time."""
RATE = 50.0
"""Requests per second of the legitimate clients."""
MAX_MB = 64.0
"""Limit in megabytes for an attack's data, so that a peer that stores all data does not exhaust the memory."""
CONNECTIONS = {"silent": 1000, "slow-header": 200, "slow-body": 200, BOMBS: 2, CORPUS: 4}
"""Number of connections of an attack. All other attacks have 20."""
ON_PEERS = {"endless-url", "endless-header", "endless-body", "silent", "slow-header", "slow-body", BOMBS, CORPUS}
"""Attacks that also run on the peers, for the table in README.md."""
OVERLOAD, COST = "overload", "cost"
NAMES = (*ATTACKS, *UPLOADS, OVERLOAD, COST)
CLIENTS = (16, 32, 64)
"""Numbers of clients for finding the best goodput."""
LOAD_SECONDS = 3.0
TIMES = 10
"""Overload, as a multiple of the load with the best goodput."""


def measure(arguments: argparse.Namespace) -> Report:
    """Run all attacks, or `arguments.only`, on all subjects."""
    # Imported here, because torch and Lightning take seconds, and only this function needs them.
    from benchmarks.serve_models import export_model

    report, names = Report("attack"), arguments.only or NAMES
    with tempfile.TemporaryDirectory() as folder:
        scratch, rng = Path(folder), np.random.default_rng(0)
        images = [make_photo(rng, *IMAGENET_SIZE) for _ in range(NUM_IMAGES)]
        model = export_model("mobilenet_v3_small", scratch / "model", 256, 224)
        with subjects(model, scratch, images) as found:
            attacks = [name for name in names if name not in (OVERLOAD, COST) and (name != CORPUS or hostile_files())]
            if attacks:
                Attacks(report, found).measure(attacks, arguments.rounds)
            if OVERLOAD in names:
                for subject in found:
                    if subject.name != CONTAINER:
                        measure_overload(report, subject)
        if COST in names:
            measure_uploads(report, model, scratch)
    return report


class Attacks:
    """Attacks on all subjects, one at a time, and their effect on legitimate clients."""

    def __init__(self, report: Report, found: Sequence[Subject]) -> None:
        """Collect the figures in a report."""
        self._report, self._subjects = report, found
        self._calm: dict[str, Answered] = defaultdict(Answered)
        self._attacked: dict[tuple[str, str], Answered] = defaultdict(Answered)
        self._growth: dict[tuple[str, str], int] = defaultdict(int)
        self._num_ended: dict[str, int] = defaultdict(int)

    def measure(self, names: Sequence[str], rounds: int) -> None:
        """Run the attacks `names` for `rounds`, and report."""
        for _ in range(rounds):
            for name in names:
                for subject in self._subjects:
                    if name in ON_PEERS or _is_ours(subject):
                        self._attack(name, subject)
        for name in names:
            for subject in self._subjects:
                if (name, subject.name) in self._attacked:
                    self._add(name, subject)
        for subject in filter(_is_ours, self._subjects):
            self._sum_up(subject)

    def _attack(self, name: str, subject: Subject) -> None:
        subject.recover()
        call, key = subject.call(), (name, subject.name)
        self._calm[subject.name].add(ask(call, CALM_SECONDS, RATE))
        size = Size(CONNECTIONS.get(name, 20), ATTACK_SECONDS + MARGIN_SECONDS, MAX_MB, again=True)
        if name in UPLOADS:
            size = Size(size.connections, size.seconds, max_mb=1000, again=True)
        with subject.watch() as watch, Attacking(name, call.port, size):
            self._attacked[key].add(ask(call, ATTACK_SECONDS, RATE))
        self._growth[key] = max(self._growth[key], watch.growth)
        self._num_ended[subject.name] += not watch.is_alive_still

    def _add(self, name: str, subject: Subject) -> None:
        calm, attacked = self._calm[subject.name], self._attacked[name, subject.name]
        lost = f", {attacked.num_lost} of {attacked.num_asked} lost" if attacked.num_lost else ""
        self._report.add(
            f"{subject.name}: p99 of others, {name}", attacked.p99 / calm.p99, "x",
            at_most=2 if _is_ours(subject) else None,
            reference=f"{1e3 * attacked.p99:.1f} ms, {1e3 * calm.p99:.1f} ms before; "
            f"memory +{self._growth[name, subject.name] / 1e6:.0f} MB{lost}",
        )  # fmt: skip

    def _sum_up(self, subject: Subject) -> None:
        ours = [answered for (_, name), answered in self._attacked.items() if name == subject.name]
        asked, lost = (sum(getattr(answered, what) for answered in ours) for what in ("num_asked", "num_lost"))
        self._report.add(
            f"{subject.name}: ended", self._num_ended[subject.name], "times", at_most=0, reference="all attacks"
        )
        self._report.add(
            f"{subject.name}: requests of others lost",
            lost,
            "requests",
            at_most=0,
            reference=f"of {asked}, all attacks",
        )
        growth = max(bytes_ for (_, name), bytes_ in self._growth.items() if name == subject.name)
        limit = TARGETS["edge"].memory_mb / 2 if subject.name == CONTAINER else None
        self._report.add(f"{subject.name}: memory taken by an attack", growth / 1e6, "MB", at_most=limit)


def _is_ours(subject: Subject) -> bool:
    return subject.name in (CONVOY, CONTAINER)


def measure_overload(report: Report, subject: Subject) -> None:
    """Report a subject's best goodput, and its goodput at ten times the load."""
    subject.recover()
    call, is_ours = subject.call(), _is_ours(subject)
    closed_loop(call, CLIENTS[0], 1)
    usual = max((closed_loop(call, number, LOAD_SECONDS) for number in CLIENTS), key=lambda load: load.goodput)
    best, many = usual.goodput, TIMES * CLIENTS[-1]
    report.add(f"{subject.name}: best goodput", best, "images/s", reference=f"of {CLIENTS} clients")
    loads: dict[str, Callable[[], Overload]] = {
        f"{many} clients": lambda: closed_loop(call, many, LOAD_SECONDS),
        f"{TIMES} x as many new clients a second": lambda: open_loop(call, TIMES * best, LOAD_SECONDS),
    }
    for title, load in loads.items():
        subject.recover()
        came = load()
        report.add(
            f"{subject.name}: goodput / best, {title}", came.goodput / best, "x", goal=0.8 if is_ours else None,
            reference=_describe(came),
        )  # fmt: skip
        if came.refused:
            report.add(
                f"{subject.name}: p99 of refusals, {title}", 1e3 * came.refusal_p99, "ms",
                at_most=50 if is_ours else None,
            )  # fmt: skip


def _describe(came: Overload) -> str:
    failures = f", {came.failures.total()} failed" if came.failures else ""
    return f"{came.offered:,.0f} requests/s came, {len(came.refused):,} were refused{failures}"


OPTIONS: list[tuple[str, dict[str, object]]] = [
    ("--only", {"action": "append", "choices": NAMES, "help": "run this attack; may be given several times"}),
]

if __name__ == "__main__":
    run(measure, OPTIONS, rounds=1)
