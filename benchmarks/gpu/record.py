"""The figures of one device, kept one by one: a run that is cut short leaves a table, the next one goes on from it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from benchmarks.gpu.device import Timing, conditions, name_of, roof_of
from benchmarks.report import Row, machine, markdown_table, versions
from core.errors import UserError
from core.files import whole_file


class OutOfTimeError(Exception):
    """The time of an item is spent; what it has measured is kept."""


@dataclass(frozen=True)
class Size:
    """How large everything is: `FULL` for a GPU, `SMOKE` to see on any machine that all of it runs."""

    name: str
    timing: Timing
    pixels: int
    batch_sizes: tuple[int, ...]
    """the first one is where variants are compared"""
    compiled: bool
    matrix: int
    copied_mb: int
    fed_images: int
    fed_steps: int
    cifar_epochs: float
    cifar_seeds: int
    cifar_images: int
    cifar_width: float
    serving_batches: tuple[int, ...]


FULL = Size(
    "full", Timing(), 224, (2048, 8192, 4096, 1024, 512), True, 8192, 4096, 4096, 48, 30, 5, 50_000, 1.5,
    (1, 2, 4, 8, 16, 32, 64, 128, 256),
)  # fmt: skip
SMOKE = Size("smoke", Timing(1, 0.01), 32, (4, 2), False, 64, 1, 16, 8, 1, 2, 128, 0.25, (1, 2))
SIZES = {size.name: size for size in (FULL, SMOKE)}


@dataclass
class Record:
    """Rows by metric, notes, and whatever else belongs to them; every change goes to the file at once."""

    device: torch.device
    size: Size
    path: Path | None = None
    cifar10: Path | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    profile: dict[str, dict[str, float]] = field(default_factory=dict)
    deadline: float = float("inf")

    @property
    def roof(self) -> float | None:
        """FLOP/s that the device can do at most in bf16; None where nobody knows."""
        roof = roof_of(name_of(self.device))
        return None if roof is None else roof * 1e12

    def needs(self, *metrics: str) -> bool:
        """Whether any of the metrics is missing.

        Raises:
            OutOfTimeError: it is, and there is no time left for it.

        """
        if all(metric in self.rows or metric in self.notes for metric in metrics):
            return False
        if monotonic() > self.deadline:
            raise OutOfTimeError
        return True

    def add(self, metric: str, value: float, unit: str, *, goal: float | None = None, reference: str = "") -> None:
        """Keep a figure."""
        self.rows[metric] = Row(metric, value, unit, goal, reference)
        self.notes.pop(metric, None)
        self._write()

    def note(self, metric: str, text: str) -> None:
        """Keep why there is no figure, or what to know about it."""
        self.notes[metric] = text
        self._write()

    def keep_profile(self, name: str, milliseconds: dict[str, float]) -> None:
        """Keep where the time of a step goes."""
        self.profile[name] = milliseconds
        self._write()

    @property
    def identity(self) -> dict[str, str]:
        """What must be the same for figures to stand in one table."""
        return {
            "device": name_of(self.device),
            "size": self.size.name,
            "torch": str(torch.__version__),
            "cuda": str(torch.version.cuda),
        }

    def resume(self) -> None:
        """Read the figures that an earlier run on the same device with the same versions has left in the file.

        Raises:
            UserError: the file is something else.

        """
        if self.path is None or not self.path.is_file():
            return
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            rows = [Row(**{key: value for key, value in row.items() if key != "met"}) for row in content["rows"]]
            if content["identity"] != self.identity:
                return
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.path} holds no figures of this benchmark: give --json another file") from None
        self.rows = {row.metric: row for row in rows if row.value is not None}
        # Notes on what is missing are written anew: there may be time, memory or data for it now.
        self.notes = {metric: text for metric, text in content["notes"].items() if metric in self.rows}
        self.profile = content["profile"]

    def as_json(self) -> dict[str, Any]:
        """Everything that a reader of the figures must know."""
        return {
            "benchmark": "gpu",
            "machine": ", ".join([*_described(self.device), machine()]),
            "versions": versions(),
            "date": datetime.now(UTC).date().isoformat(),
            "identity": self.identity,
            "conditions": conditions(self.device),
            "rows": [row.as_dict() for row in self.complete()],
            "notes": self.notes,
            "profile": self.profile,
        }

    def complete(self) -> list[Row]:
        """Give all figures, and those of the table that are missing as not measured."""
        return [*self.rows.values(), *(row for row in EXPECTED if row.metric not in self.rows)]

    def as_markdown(self) -> str:
        """Make a table, with the notes below it."""
        table = markdown_table([row.as_dict() for row in self.complete()])
        return "\n".join([table, "", *(f"- {metric}: {text}" for metric, text in self.notes.items())])

    def _write(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as temporary:
                temporary.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")


def _described(device: torch.device) -> Iterable[str]:
    yield name_of(device)
    yield from (f"{name} {value}" for name, value in conditions(device).items())


COPY, MATRIX = "device copy", "bf16 matrix product"
BEST, BEST_SHARE = "best step, AlexNet owt or bn", "best step / roof"
FED, FED_SHARE = "fed, AlexNet bn, streamed", "fed / the same step on a resident batch"
AUGMENTATION, BUSY = "step / augmentation", "GPU busy while fed"
CIFAR, CIFAR_SECONDS = "CIFAR-10 test accuracy, mean", "CIFAR-10 training"
RESUMED, RESUMED_CLOSE = "killed and resumed, deterministic: bit-equal", "killed and resumed: within 1e-2"

EXPECTED = (
    Row(COPY, None, "GB/s"),
    Row(MATRIX, None, "TFLOP/s"),
    Row(BEST, None, "images/s", 83_000, "goal on an H200"),
    Row(BEST_SHARE, None, "x", 0.36, "cifar10-airbench on an A100"),
    Row(FED, None, "images/s"),
    Row(FED_SHARE, None, "x", 0.97, "a P100: 0.968, at a 25th of the speed"),
    Row(AUGMENTATION, None, "x", 20, "at most 5 % of the step"),
    Row(BUSY, None, "x", 0.9),
    Row(CIFAR, None, "x", 0.94, "5 seeds"),
    Row(CIFAR_SECONDS, None, "s", None, "2.59 s: cifar10-airbench94 on an A100, a network made for the purpose"),
    Row("serving, batch 1", None, "ms"),
    Row("serving, batch 256 rate", None, "images/s"),
    Row(RESUMED, None, "", 1),
    Row(RESUMED_CLOSE, None, "", 1),
)
"""The table without its many variants: what is shown as not measured until it is."""
