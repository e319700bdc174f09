"""Common form of all benchmarks: rows of figures with goals, as a table and as JSON."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from core.errors import UserError

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pytorch-lightning", "pyarrow", "onnxruntime")


@dataclass(frozen=True)
class Row:
    """One figure. `goal` is the minimum, or with `is_limit` the maximum; None without a goal.

    `value` is None if nothing has been measured yet.
    """

    metric: str
    value: float | None
    unit: str
    goal: float | None = None
    reference: str = ""
    is_limit: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal or a value."""
        if self.goal is None or self.value is None:
            return None
        return self.value <= self.goal if self.is_limit else self.value >= self.goal

    def as_dict(self) -> dict[str, object]:
        """Return the row as in the JSON of a report."""
        names = ("metric", "value", "unit", "goal", "met", "reference")
        return {name: getattr(self, name) for name in names}


@dataclass
class Report:
    """Figures of one benchmark on one machine."""

    benchmark: str
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        metric: str,
        value: float,
        unit: str,
        *,
        goal: float | None = None,
        at_most: float | None = None,
        reference: str = "",
    ) -> None:
        """Add a figure, with an optional minimum (`goal`) or maximum (`at_most`)."""
        wanted = goal if at_most is None else at_most
        self.rows.append(Row(metric, value, unit, wanted, reference, is_limit=at_most is not None))

    def as_json(self) -> dict[str, object]:
        """Return the figures and their conditions as JSON values."""
        return {
            "benchmark": self.benchmark,
            "machine": machine(),
            "versions": versions(),
            "date": datetime.now(UTC).date().isoformat(),
            "rows": [row.as_dict() for row in self.rows],
        }

    def as_markdown(self) -> str:
        """Return the figures as a Markdown table."""
        return markdown_table([row.as_dict() for row in self.rows])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages."""
    installed = {distribution.name.lower().replace("_", "-") for distribution in distributions()}
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES if name in installed}


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Make a Markdown table from the rows in a report's JSON."""
    lines = ["| figure | value | goal | met | |", "|---|---:|---:|---|---|"]
    lines += [
        f"| {row['metric']} | {_measured(row)} | "
        f"{'' if row['goal'] is None else _number(row['goal'])} | "
        f"{ {None: '', True: 'yes', False: '**no**'}[row['met']] } | {row['reference']} |"
        for row in rows
    ]
    return "\n".join(lines)


def _measured(row: Mapping[str, Any]) -> str:
    return "not measured" if row["value"] is None else f"{_number(row['value'])} {row['unit']}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> str:
    """Describe the processor, the usable cores, and the memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{_processor()}, {cores} cores, {memory / 2**30:.0f} GiB, {platform.system()}"


def _processor() -> str:
    """Describe the processor. If a cloud hides its name, family and model still identify the generation."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    numbers = ", ".join(
        f"{name.removeprefix('cpu ')} {facts[name]}" for name in ("cpu family", "model") if name in facts
    )
    name = facts.get("model name", platform.machine())
    return f"{name} ({numbers})" if numbers else name


def alternate(candidates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Measure candidates in turn, so that a drift of the machine's speed affects all alike. Returns the medians."""
    return medians(measure_in_turn(candidates, rounds))


def measure_in_turn(candidates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure candidates one after another, round by round. Returns the figures of each candidate, in order.

    Each candidate returns its figure, such as images per second. The first round warms up, and does not count.
    """
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            figure = candidate()
            if number:
                figures[name].append(figure)
            print(f"  round {number}: {name} {_number(figure)}", file=sys.stderr)
    return figures


def medians(figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each candidate."""
    return {name: statistics.median(values) for name, values in figures.items()}


def ratio(figures: Iterable[float], others: Iterable[float]) -> float:
    """Return the median of the ratios of figures from the same rounds."""
    return float(statistics.median(figure / other for figure, other in zip(figures, others, strict=True)))


def rate(work: Callable[[], int]) -> float:
    """Return the items per second of `work`, which returns the number of items."""
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def run(
    benchmark: Callable[[argparse.Namespace], Report],
    options: Sequence[tuple[str, dict[str, object]]] = (),
    *,
    rounds: int = 5,
) -> None:
    """Run a benchmark from the command line. Prints the table, and writes JSON to `--json FILE`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--rounds", type=int, default=rounds, help="counted rounds; medians are reported")
    for name, settings in options:
        parser.add_argument(name, **settings)  # type: ignore[arg-type]
    arguments = parser.parse_args()
    try:
        report = benchmark(arguments)
    except UserError as error:
        sys.exit(f"benchmarks: {error}")
    print(f"{report.benchmark} on {machine()}\n\n{report.as_markdown()}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
