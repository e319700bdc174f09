"""Whether images differ from those that a model was measured on. N images, M measures of each.

Two-sample Kolmogorov-Smirnov tests of each softmax output with Bonferroni's correction: Rabanser et al., Failing Loudly
(arXiv 1810.11953), where they find more kinds of drift than other tests do; here also of brightness and sharpness.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from core.errors import UserError
from data.images.decode import Pixels
from models.exported.session import Probabilities

ALPHA = 0.001
"""Share of windows without drift that give an alarm, at most."""
MIN_IMAGES = 30
BRIGHTNESS, SHARPNESS = "brightness", "sharpness"
NUM_TRAITS = 2

Values = npt.NDArray[np.float32]


class Difference(BaseModel):
    """How one measure differs."""

    model_config = ConfigDict(frozen=True)

    name: str
    """`probability of CLASS`, brightness or sharpness"""
    distance: float
    """largest difference of the two distribution functions, 0 to 1"""
    p_value: float
    before: float
    """mean over the test images"""
    now: float


class Drift(BaseModel):
    """What a comparison has found."""

    model_config = ConfigDict(frozen=True)

    num_test_images: int
    num_images: int
    threshold: float
    """a p-value below is an alarm: `ALPHA`, shared by all measures"""
    differences: tuple[Difference, ...]
    """the smallest p-value first"""
    shares: dict[str, tuple[float, float]]
    """share of the answers that name a class: among the test images, and now"""

    @property
    def alarms(self) -> tuple[Difference, ...]:
        """What differs."""
        return tuple(one for one in self.differences if one.p_value < self.threshold)


@dataclass(frozen=True)
class Window:
    """Images as they are compared: probabilities [N, C] and traits [N, 2]."""

    probabilities: Probabilities
    traits: Values

    @classmethod
    def join(cls, windows: "Iterable[Window]") -> "Window":
        """Put windows together."""
        parts = list(windows)
        probabilities = np.concatenate([one.probabilities for one in parts])
        return cls(probabilities, np.concatenate([one.traits for one in parts]))


def measure_traits(images: Pixels) -> Values:
    """Give the brightness (mean grey, 0 to 1) and sharpness (mean step between neighbours) of uint8 [N, S, S, 3]."""
    grey = images.mean(axis=3, dtype=np.float32) / 255
    steps = [np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    return np.stack([grey.mean(axis=(1, 2)), (steps[0] + steps[1]) / 2], axis=1).astype(np.float32)


def find_drift(before: Window, now: Window, classes: tuple[str, ...]) -> Drift:
    """Compare images with the test images.

    Raises:
        UserError: there are too few.

    """
    if (number := len(now.traits)) < MIN_IMAGES:
        raise UserError(f"{number} images are too few to tell drift from chance: {MIN_IMAGES} are needed")
    names = [*(f"probability of {name}" for name in classes), BRIGHTNESS, SHARPNESS]
    columns = [np.concatenate([one.probabilities, one.traits], axis=1) for one in (before, now)]
    differences = [_compare(name, *(both[:, index] for both in columns)) for index, name in enumerate(names)]
    answers = [np.bincount(one.probabilities.argmax(axis=1), minlength=len(classes)) for one in (before, now)]
    shares = [counts / counts.sum() for counts in answers]
    return Drift(
        num_test_images=len(before.traits),
        num_images=number,
        threshold=ALPHA / len(names),
        differences=tuple(sorted(differences, key=lambda one: one.p_value)),
        shares={name: (float(shares[0][index]), float(shares[1][index])) for index, name in enumerate(classes)},
    )


def _compare(name: str, before: Values, now: Values) -> Difference:
    distance = ks_distance(before, now)
    return Difference(
        name=name,
        distance=distance,
        p_value=ks_p_value(distance, len(before), len(now)),
        before=float(before.mean()),
        now=float(now.mean()),
    )


def ks_distance(first: Values, second: Values) -> float:
    """Give the largest difference of the two empirical distribution functions."""
    values = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(one), values, side="right") / len(one) for one in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def ks_p_value(distance: float, num_first: int, num_second: int) -> float:
    """Give the chance of such a distance between samples of one distribution, by Stephens (1970)."""
    root = math.sqrt(num_first * num_second / (num_first + num_second))
    scaled = (root + 0.12 + 0.11 / root) * distance
    # The series does not converge there, and the chance is 1 to eight digits.
    if scaled < 0.3:
        return 1.0
    signs = (1.0, -1.0)
    terms = (2 * signs[index % 2] * math.exp(-2 * ((index + 1) * scaled) ** 2) for index in range(100))
    return min(1.0, max(0.0, sum(terms)))
