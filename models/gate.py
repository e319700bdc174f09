from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from data.errors import UserError
from data.manifest import DataManifest, read_manifest
from data.shards import PreparedImages
from models.config import GateConfig
from models.evaluate import Evaluation, predict
from models.manifest import ModelManifest
from models.predictor import OnnxPredictor

ROUNDING = 1e-9
"""Less than one image among any test images: 0.1 - 0.01 is more than 0.09 to a computer."""


class Check(BaseModel):
    """One figure against its limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float
    comparison: str
    """>= or <="""
    limit: float
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        sign = self.comparison if self.passed else {">=": "<", "<=": ">"}[self.comparison]
        return f"{self.name} {self.value:.4g} {sign} {self.limit:.4g}{f' ({self.note})' if self.note else ''}"


class Verdict(BaseModel):
    """Whether a challenger may become champion, with every figure that says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """All checks have passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> str:
        """The checks that failed, in words."""
        return "; ".join(str(check) for check in self.checks if not check.passed)


@dataclass(frozen=True)
class Rival:
    """The champion's test accuracy on today's test images, or why it cannot be measured on them."""

    accuracy: float | None
    why_none: str = ""


def measure_model(folder: Path, prepared: Path) -> Evaluation:
    """Measure an exported model on today's test images.

    Raises:
        UserError: it was made for other classes, or for images of another size.

    """
    predictor, manifest = OnnxPredictor(folder), read_manifest(prepared)
    if why := _misfit(predictor.manifest, manifest):
        raise UserError(f"{predictor.manifest.name} {why}: it cannot be measured on the images in {prepared}")
    images = PreparedImages(prepared, manifest, "test")
    return predict(predictor, images, manifest.classes, predictor.manifest.preprocessing.crop).summarize()


def measure_rival(folder: Path | None, prepared: Path) -> Rival:
    """Measure the champion in `folder` on today's test images, if there is one and it knows their classes."""
    if folder is None:
        return Rival(None, "there is none")
    rival, today = OnnxPredictor(folder).manifest, read_manifest(prepared)
    if why := _misfit(rival, today):
        return Rival(None, why)
    return Rival(measure_model(folder, prepared).accuracy)


def _misfit(model: ModelManifest, today: DataManifest) -> str | None:
    if model.classes != today.classes:
        return f"v{model.version} knows other classes"
    if model.preprocessing.size != today.size:
        return f"v{model.version} takes images prepared at {model.preprocessing.size} px, not {today.size}"
    return None


def judge(evaluation: Evaluation, parity_error: float, rival: Rival, config: GateConfig) -> Verdict:
    """Hold a challenger's figures against the gates.

    Args:
        evaluation: the challenger's, on today's test images.
        parity_error: largest difference of a probability between the exported model and the trained one.
        rival: the champion's.
        config: the limits.

    """
    worst, worst_accuracy = min(evaluation.class_accuracy.items(), key=lambda item: item[1])
    checks = [
        _at_least("test/accuracy", evaluation.accuracy, config.min_accuracy),
        _at_least("worst class", worst_accuracy, config.min_class_accuracy, note=f"class '{worst}'"),
        _at_most("ONNX against torch", parity_error, config.max_parity_error),
    ]
    if rival.accuracy is None:
        return Verdict(checks=tuple(checks), notes=(f"not compared with a champion: {rival.why_none}",))
    limit = rival.accuracy - config.max_regression
    note = f"champion {rival.accuracy:.4g} less {config.max_regression:g}"
    return Verdict(checks=(*checks, _at_least("against the champion", evaluation.accuracy, limit, note=note)))


def _at_least(name: str, value: float, limit: float, note: str = "") -> Check:
    passed = value >= limit - ROUNDING
    return Check(name=name, value=value, comparison=">=", limit=limit, passed=passed, note=note)


def _at_most(name: str, value: float, limit: float) -> Check:
    return Check(name=name, value=value, comparison="<=", limit=limit, passed=value <= limit)
