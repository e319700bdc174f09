"""Calibration of probabilities, and thresholds for uncertain answers. Shapes: N images, C classes."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.exported.manifest import Certainty
from models.exported.predictor import entropy
from models.exported.session import Probabilities
from models.judging.evaluate import Predictions

NUM_BINS = 15
"""Guo et al. 2017."""
MAX_TEMPERATURE = 20.0
STEPS = 40
"""Number of bisections of the interval for the temperature."""
NUM_RESAMPLES = 200
SEED = 0
KNOWN_SHARE = 0.95
"""Share of the validation images with an acceptable entropy, the usual operating point for comparing detectors."""

Floats = npt.NDArray[np.float64]


class Reliability(NamedTuple):
    """Answers in bins of equal width, by confidence. Empty bins are left out."""

    confidence: Floats
    """mean confidence in each bin"""
    accuracy: Floats
    """share of right answers in each bin"""
    share: Floats
    """share of all answers in each bin"""

    @property
    def error(self) -> float:
        """Expected calibration error."""
        return float((self.share * np.abs(self.accuracy - self.confidence)).sum())


def reliability(confidence: Floats, hits: npt.NDArray[np.bool_]) -> Reliability:
    """Compare confidences [N] with hits [N]."""
    bins = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    used = counts > 0
    confidences, right = (np.bincount(bins, values, NUM_BINS)[used] for values in (confidence, hits))
    return Reliability(confidences / counts[used], right / counts[used], counts[used] / len(hits))


def reliability_of(predictions: Predictions) -> Reliability:
    """Compute the reliability, with the probability of the likeliest class as confidence."""
    return reliability(predictions.probabilities.max(axis=1).astype(np.float64), predictions.hits)


def error_by_chance(predictions: Predictions) -> float:
    """Return the 95 % quantile of a perfectly calibrated model's calibration error on test sets of this size."""
    confidence = predictions.probabilities.max(axis=1).astype(np.float64)
    rng = np.random.default_rng(SEED)
    errors = [reliability(confidence, rng.random(len(confidence)) < confidence).error for _ in range(NUM_RESAMPLES)]
    return float(np.quantile(errors, 0.95))


def fit_temperature(validation: Predictions) -> float:
    """Find the T that maximizes the likelihood of softmax(logits / T) on validation images, predicted with T = 1.

    One more image of unknown class is added (after Platt 1999), so that T stays above 0 even if all answers are right.
    """
    logits = np.log(validation.probabilities.astype(np.float64).clip(1e-30))
    labels, num_images = validation.labels, len(validation.labels)
    unknown = 1 / (num_images + 1)
    target = (1 - unknown) * np.take_along_axis(logits, labels[:, None], axis=1)[:, 0].mean() + unknown * logits.mean()

    def slope(inverse: float) -> float:
        """Derivative of the loss by 1 / T, which is increasing."""
        probabilities = temper(validation.probabilities, 1 / inverse)
        return float((probabilities * logits).sum(axis=1).mean() - target)

    low, high = -math.log(MAX_TEMPERATURE), math.log(MAX_TEMPERATURE)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def temper(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Return softmax(logits / temperature) for the probabilities softmax(logits), [N, C]."""
    logits = np.log(probabilities.astype(np.float64).clip(1e-30)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def calibrate(predictions: Predictions, temperature: float) -> Predictions:
    """Return the predictions at another temperature."""
    return Predictions(temper(predictions.probabilities, temperature), predictions.labels, predictions.classes)


def images_needed(min_precision: float) -> int:
    """Minimum number of validation images for a threshold: five times the number with one error at this precision."""
    return math.ceil(5 / (1 - min_precision) - 1e-9)


def choose_certainty(validation: Predictions, min_precision: float) -> Certainty | None:
    """Choose the lowest probability above which answers reach `min_precision`, or else the best possible precision.

    Returns None if there are fewer validation images than `images_needed`.
    """
    num_images = len(validation.labels)
    if num_images < images_needed(min_precision):
        return None
    confidence = validation.probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    counts = np.arange(1, num_images + 1)
    precision = np.cumsum(validation.hits[order]) / counts
    # Among fewer answers, a single error would decide.
    precision[: images_needed(min_precision) // 5 - 1] = 0
    reached = np.flatnonzero(precision >= min_precision)
    last = int(reached[-1] if len(reached) else precision.argmax())
    below = order[last + 1 :]
    threshold = float(confidence[order[last]] + confidence[below[0]]) / 2 if len(below) else 0.0
    entropies = entropy(validation.probabilities)
    max_entropy = float(np.quantile(entropies, KNOWN_SHARE))
    certain = (confidence >= threshold) & (entropies <= max_entropy)
    return Certainty(
        threshold=threshold,
        max_entropy=max_entropy,
        precision=float(validation.hits[certain].mean()) if certain.any() else 0.0,
        coverage=float(certain.mean()),
        num_images=num_images,
    )
