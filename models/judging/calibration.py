"""Probabilities that mean what they say, and which answers are uncertain. N images, C classes."""

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
"""Halvings of the interval that the temperature is in."""
NUM_RESAMPLES = 200
SEED = 0
KNOWN_SHARE = 0.95
"""Share of the validation images whose entropy counts as known: the usual point to compare detectors at."""

Floats = npt.NDArray[np.float64]


class Reliability(NamedTuple):
    """Answers by their confidence, in bins of equal width that hold any."""

    confidence: Floats
    """mean of each bin"""
    accuracy: Floats
    """share of right answers in each bin"""
    share: Floats
    """of all answers in each bin"""

    @property
    def error(self) -> float:
        """Give the expected calibration error."""
        return float((self.share * np.abs(self.accuracy - self.confidence)).sum())


def reliability(confidence: Floats, hits: npt.NDArray[np.bool_]) -> Reliability:
    """Hold confidences [N] against hits [N]."""
    bins = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    used = counts > 0
    confidences, right = (np.bincount(bins, values, NUM_BINS)[used] for values in (confidence, hits))
    return Reliability(confidences / counts[used], right / counts[used], counts[used] / len(hits))


def reliability_of(predictions: Predictions) -> Reliability:
    """Take the probability of the likeliest class as the confidence."""
    return reliability(predictions.probabilities.max(axis=1).astype(np.float64), predictions.hits)


def error_by_chance(predictions: Predictions) -> float:
    """Give the calibration error that a perfectly calibrated model stays below in 95 % of test sets of this size."""
    confidence = predictions.probabilities.max(axis=1).astype(np.float64)
    rng = np.random.default_rng(SEED)
    errors = [reliability(confidence, rng.random(len(confidence)) < confidence).error for _ in range(NUM_RESAMPLES)]
    return float(np.quantile(errors, 0.95))


def fit_temperature(validation: Predictions) -> float:
    """Find the T that makes softmax(logits / T) likeliest on validation images that were predicted with T = 1.

    One more image, whose class is unknown, counts too (after Platt 1999): T stays above 0 where all answers are right.
    """
    logits = np.log(validation.probabilities.astype(np.float64).clip(1e-30))
    labels, num_images = validation.labels, len(validation.labels)
    unknown = 1 / (num_images + 1)
    target = (1 - unknown) * np.take_along_axis(logits, labels[:, None], axis=1)[:, 0].mean() + unknown * logits.mean()

    def slope(inverse: float) -> float:
        """Derivative of the loss by 1 / T, which grows."""
        probabilities = temper(validation.probabilities, 1 / inverse)
        return float((probabilities * logits).sum(axis=1).mean() - target)

    low, high = -math.log(MAX_TEMPERATURE), math.log(MAX_TEMPERATURE)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def temper(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Give softmax(logits / temperature) for the probabilities softmax(logits), [N, C]."""
    logits = np.log(probabilities.astype(np.float64).clip(1e-30)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def calibrate(predictions: Predictions, temperature: float) -> Predictions:
    """Give the same predictions at another temperature."""
    return Predictions(temper(predictions.probabilities, temperature), predictions.labels, predictions.classes)


def images_needed(min_precision: float) -> int:
    """Validation images that a threshold needs: five times as many as have one error at that precision."""
    return math.ceil(5 / (1 - min_precision) - 1e-9)


def choose_certainty(validation: Predictions, min_precision: float) -> Certainty | None:
    """Choose the lowest probability above which so many answers are right, or the most that can be had.

    Gives None where there are fewer validation images than `images_needed`.
    """
    num_images = len(validation.labels)
    if num_images < images_needed(min_precision):
        return None
    confidence = validation.probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    counts = np.arange(1, num_images + 1)
    precision = np.cumsum(validation.hits[order]) / counts
    # One error more or less among fewer answers would decide.
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
