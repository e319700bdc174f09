"""Whether a challenger may become the champion."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from core.errors import UserError
from core.extensions import short_name
from models.config import GateConfig
from models.judging.calibration import error_by_chance, reliability_of
from models.judging.compare import Comparison, compare, wilson_interval
from models.judging.evaluate import Predictions
from models.judging.measured import Measured, differing_classes, measure
from models.judging.metrics import evaluate
from models.judging.rules import apply_rules
from models.judging.slices import Slice, worse_slices

ROUNDING = 1e-9
"""Tolerance for rounding errors, less than one test image: in floating point, 0.1 - 0.01 is more than 0.09."""

APPROVAL = "gate.approval asks for a person's approval"
NUM_SLICES = 5
"""Maximum number of slices in a note."""

Comparator = Literal[">=", "<=", ">"]
Outcome = Literal["passed", "failed", "waits"]
OPPOSITES = {">=": "<", "<=": ">", ">": "<="}


class Check(BaseModel):
    """Comparison of one figure with its limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float
    comparison: Comparator
    limit: float
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        sign = self.comparison if self.passed else OPPOSITES[self.comparison]
        return f"{self.name} {self.value:.4g} {sign} {self.limit:.4g}{f' ({self.note})' if self.note else ''}"


class Verdict(BaseModel):
    """Decision on a challenger, with all figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checks: tuple[Check, ...]
    rules: dict[str, str] = {}
    """reason for the refusal by each rule in `gate.rules`; an empty text is no refusal"""
    comparison: Comparison | None = None
    """comparison with the champion; None without a champion of the same classes"""
    waits_for: str = ""
    """why a person must decide; empty if nobody must"""
    notes: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """Outcome of the gate. A failed check decides before everything else."""
        if self.failures:
            return "failed"
        return "waits" if self.waits_for else "passed"

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Name, result, and `passed` or `failed`, of each check and each rule."""
        checks = [(check.name, str(check), check.passed) for check in self.checks]
        rules = [(name, f"{name}: {refusal}" if refusal else name, not refusal) for name, refusal in self.rules.items()]
        return [(name, words, "passed" if passed else "failed") for name, words, passed in [*checks, *rules]]

    @property
    def failures(self) -> str:
        """Reasons against the challenger, in words."""
        failed = [words for _, words, outcome in self.rows if outcome == "failed"]
        if self.comparison and self.comparison.verdict == "worse":
            failed.append(f"against the champion {self.comparison}")
        return "; ".join(failed)

    @property
    def why(self) -> str:
        """Reason for the outcome, in one line."""
        if self.outcome != "passed":
            return self.failures or self.waits_for
        return str(self.comparison) if self.comparison else "; ".join(map(str, self.checks))

    @property
    def figures(self) -> dict[str, float]:
        """All figures by name."""
        figures = {f"gate/{check.name.replace(' ', '_')}": check.value for check in self.checks}
        return figures | (self.comparison.figures if self.comparison else {})


@dataclass(frozen=True)
class Rival:
    """Predictions of the champion for today's test images, or the reason why there are none."""

    predictions: Predictions | None
    why_none: str = ""
    is_incomparable: bool = False
    """whether there is a champion with other classes"""


def measure_model(folder: Path, raw: Path, prepared: Path) -> Predictions:
    """Return the predictions of an exported model for today's test images.

    Raises:
        UserError: the model has other classes, or an original is missing.

    """
    return predictions_of(measure(folder, raw, prepared))


def predictions_of(model: Measured) -> Predictions:
    """Return the predictions of a model for all of today's test images.

    Raises:
        UserError: the model has other classes.

    """
    manifest = model.manifest
    if why := differing_classes(manifest.classes, model.today):
        raise UserError(f"{manifest.name} v{manifest.version} {why}: it cannot be measured on the prepared images")
    return model.among(model.today)


def measure_rival(folder: Path | None, raw: Path, prepared: Path) -> Rival:
    """Return the predictions of the champion in `folder`, if there is a champion with today's classes."""
    return as_rival(measure(folder, raw, prepared) if folder else None)


def as_rival(champion: Measured | None) -> Rival:
    """Return the predictions of the champion, if there is a champion with today's classes."""
    if champion is None:
        return Rival(None, "there is none")
    if why := differing_classes(champion.manifest.classes, champion.today):
        return Rival(None, f"v{champion.manifest.version} {why}", is_incomparable=True)
    return Rival(champion.among(champion.today))


def judge_challenger(
    challenger: Predictions,
    parity_error: float,
    rival: Rival,
    config: GateConfig,
    slices: Sequence[Slice] = (),
    metrics: Sequence[str] = (),
) -> Verdict:
    """Judge a challenger by the gates.

    Args:
        challenger: predictions of the challenger for today's test images.
        parity_error: maximum difference of a probability between the exported and the trained model.
        rival: predictions of the champion for the same images.
        config: limits of the gates.
        slices: slices of the test images.
        metrics: metrics of `evaluation.metrics`.

    Raises:
        UserError: a metric or a rule is missing, raises, or returns a wrong type.

    """
    checks = [_at_least("test/accuracy", float(challenger.hits.mean()), config.min_accuracy)]
    if config.better_than_guessing:
        checks.append(_better_than_guessing(challenger))
    class_checks, notes = _judge_classes(challenger, config)
    checks += [*class_checks, _calibrated(challenger, config.max_calibration_error)]
    slice_checks, slice_notes = _judge_slices(slices, config.max_slice_drop)
    checks, notes = checks + slice_checks, notes + slice_notes
    checks += _judge_figures(challenger, config, metrics)
    checks.append(_at_most("ONNX against torch", parity_error, config.max_parity_error))
    approval = APPROVAL if config.approval == "required" else ""
    rules = apply_rules(challenger, rival.predictions, config.rules)
    if rival.predictions is None:
        waits = f"it cannot be compared with the champion: {rival.why_none}" if rival.is_incomparable else approval
        notes.append(f"not compared with a champion: {rival.why_none}")
        return Verdict(checks=tuple(checks), rules=rules, waits_for=waits, notes=tuple(notes))
    comparison = compare(rival.predictions.hits, challenger.hits, config.max_regression)
    waits = _unsure(comparison, config) or approval
    return Verdict(checks=tuple(checks), rules=rules, comparison=comparison, waits_for=waits, notes=tuple(notes))


def _judge_figures(challenger: Predictions, config: GateConfig, metrics: Sequence[str]) -> list[Check]:
    """Check figures of the run against limits. Only metrics with a limit are computed."""
    limited = config.min_metrics.keys() | config.max_metrics.keys()
    figures = evaluate(challenger, [name for name in metrics if short_name(name) in limited]).metrics
    least = [_at_least(f"test/{name}", figures[f"test/{name}"], limit) for name, limit in config.min_metrics.items()]
    most = [_at_most(f"test/{name}", figures[f"test/{name}"], limit) for name, limit in config.max_metrics.items()]
    return least + most


def _unsure(comparison: Comparison, config: GateConfig) -> str:
    """Return the reason why a person must decide between the two models, or an empty text."""
    if comparison.verdict != "too few images to tell":
        return ""
    return "" if config.when_unsure == "measured" and comparison.difference >= 0 else f"{comparison}"


def _better_than_guessing(predictions: Predictions) -> Check:
    """Compare the lower end of the accuracy's interval, which is lower for small test sets, with guessing."""
    counts = np.bincount(predictions.labels, minlength=len(predictions.classes))
    largest, num_images = int(counts.argmax()), len(predictions.labels)
    low, share = wilson_interval(int(predictions.hits.sum()), num_images)[0], float(counts.max() / num_images)
    note = f"lower end of the 95 % interval; always guessing '{predictions.classes[largest]}' gets {share:.4g}"
    return Check(name="better than guessing", value=low, comparison=">", limit=share, passed=low > share, note=note)


def _calibrated(predictions: Predictions, limit: float) -> Check:
    """Check the calibration error. The limit is at least the error that a perfectly calibrated model has by chance."""
    by_chance = error_by_chance(predictions)
    note = f"of so few images up to {by_chance:.4g} come by chance" if by_chance > limit else ""
    return _at_most("calibration error", reliability_of(predictions).error, max(limit, by_chance), note)


def _judge_classes(predictions: Predictions, config: GateConfig) -> tuple[list[Check], list[str]]:
    """Judge the worst of the classes that have enough test images."""
    floor = config.min_class_accuracy
    if floor is None:
        return [], []
    counts = np.bincount(predictions.labels, minlength=len(predictions.classes))
    accuracy = predictions.summarize().class_accuracy
    by_name = dict(zip(predictions.classes, counts.tolist(), strict=True))
    judged = {name: value for name, value in accuracy.items() if by_name[name] >= config.min_class_images}
    small = [f"'{name}' ({count})" for name, count in by_name.items() if count < config.min_class_images]
    shown = f"{', '.join(small[:10])}{f' and {len(small) - 10} more' if len(small) > 10 else ''}"
    notes = [f"fewer than {config.min_class_images} test images, not judged by class: {shown}"] if small else []
    if not judged:
        return [], notes
    worst, value = min(judged.items(), key=lambda item: item[1])
    note = f"class '{worst}', {by_name[worst]} images"
    if floor:
        return [_at_least("worst class", value, floor, note)], notes
    return [Check(name="worst class", value=value, comparison=">", limit=0, passed=value > 0, note=note)], notes


def _judge_slices(slices: Sequence[Slice], limit: float | None) -> tuple[list[Check], list[str]]:
    """Name the slices that are surely worse than the rest, and judge the worst slice."""
    worse = worse_slices(slices)
    more = f" and {len(worse) - NUM_SLICES} more" if len(worse) > NUM_SLICES else ""
    notes = [f"surely worse than the rest: {'; '.join(map(str, worse[:NUM_SLICES]))}{more}"] if worse else []
    if limit is None:
        return [], notes
    drop, note = (-worse[0].difference, worse[0].name) if worse else (0.0, "no slice is surely worse than the rest")
    return [_at_most("worst slice", drop, limit, note)], notes


def _at_least(name: str, value: float, limit: float, note: str = "") -> Check:
    passed = value >= limit - ROUNDING
    return Check(name=name, value=value, comparison=">=", limit=limit, passed=passed, note=note)


def _at_most(name: str, value: float, limit: float, note: str = "") -> Check:
    return Check(name=name, value=value, comparison="<=", limit=limit, passed=value <= limit, note=note)
