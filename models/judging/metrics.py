"""Figures of the test images that `evaluation.metrics` names: some of ours, and the user's."""

import math
from collections.abc import Sequence
from numbers import Real

from core.errors import UserError
from core.extensions import short_name
from models.config import METRICS
from models.judging.evaluate import Evaluation, Predictions


def evaluate(predictions: Predictions, metrics: Sequence[str]) -> Evaluation:
    """Give the figures that every run has, and those of `metrics`.

    Raises:
        UserError: a metric is not there, raises, or gives no number.

    """
    figures = {short_name(name): _measure(name, predictions) for name in metrics}
    return predictions.summarize().model_copy(update={"figures": figures})


def _measure(name: str, predictions: Predictions) -> float:
    function = METRICS.load_function(name, "predictions")
    with METRICS.explained(name):
        value = function(predictions)
    METRICS.require(name, value, Real)
    if not math.isfinite(value):
        raise UserError(f"evaluation.metrics has {name}, which gave {value}: expected a finite number")
    return float(value)
