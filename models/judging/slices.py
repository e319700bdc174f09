"""Slices of the test images on which a model is surely worse than on the rest."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from models.judging.compare import CONFIDENCE, Hits, Z, holm

MIN_IMAGES = 10
"""Minimum number of images in a slice."""


class Slice(BaseModel):
    """Images with one value of a trait, compared with all other images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trait: str
    value: str
    num_images: int
    accuracy: float
    rest_accuracy: float
    """accuracy on the images outside the slice"""
    low: float
    high: float
    """ends of the 95 % interval of the difference in accuracy, slice minus rest"""
    p_value: float
    """Fisher's exact test, mid-p, one-sided, adjusted for the number of slices (Holm 1979)"""

    @property
    def difference(self) -> float:
        """Accuracy minus the accuracy on the rest."""
        return self.accuracy - self.rest_accuracy

    @property
    def is_worse(self) -> bool:
        """Whether the slice is significantly worse than the rest, given the number of slices."""
        return self.p_value < 1 - CONFIDENCE

    @property
    def name(self) -> str:
        """Trait and value."""
        return f"{self.trait} {self.value}"

    def __str__(self) -> str:
        return (
            f"{self.name}: accuracy {self.accuracy:.4f} of {self.num_images:,} images, {self.rest_accuracy:.4f} of the "
            f"rest (95 % interval of the difference {self.low:+.4f} to {self.high:+.4f}, p {self.p_value:.2g})"
        )


def find_slices(hits: Hits, traits: Mapping[str, Sequence[str]]) -> tuple[Slice, ...]:
    """Compare each slice of at least `MIN_IMAGES` images with the rest, lowest p-value first.

    Args:
        hits: [N], whether an image was classified correctly.
        traits: the value of each image, by name of the trait. An empty value makes no slice.

    """
    found = []
    for trait, values in traits.items():
        column = np.array(values)
        for value in sorted({*values} - {""}):
            mask = column == value
            if MIN_IMAGES <= mask.sum() < len(hits):
                found.append(_hold(trait, value, hits[mask], hits[~mask]))
    adjusted = holm([one.p_value for one in found])
    slices = [one.model_copy(update={"p_value": p_value}) for one, p_value in zip(found, adjusted, strict=True)]
    return tuple(sorted(slices, key=lambda one: (one.p_value, one.difference, one.name)))


def worse_slices(slices: Sequence[Slice]) -> list[Slice]:
    """Return the slices that are surely worse than the rest, largest drop first."""
    return sorted((one for one in slices if one.is_worse), key=lambda one: one.difference)


def _hold(trait: str, value: str, inside: Hits, outside: Hits) -> Slice:
    low, high = difference_interval(int(inside.sum()), len(inside), int(outside.sum()), len(outside))
    return Slice(
        trait=trait,
        value=value,
        num_images=len(inside),
        accuracy=float(inside.mean()),
        rest_accuracy=float(outside.mean()),
        low=low,
        high=high,
        p_value=fisher_p(int(inside.sum()), len(inside), int(outside.sum()), len(outside)),
    )


def difference_interval(hits: int, num_images: int, other_hits: int, num_others: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two shares (Agresti and Caffo 2000)."""
    share, other = (hits + 1) / (num_images + 2), (other_hits + 1) / (num_others + 2)
    half = Z * np.sqrt(share * (1 - share) / (num_images + 2) + other * (1 - other) / (num_others + 2))
    return float(share - other - half), float(share - other + half)


def fisher_p(hits: int, num_images: int, other_hits: int, num_others: int) -> float:
    """Return the one-sided mid-p value of Fisher's exact test of the hypothesis that the first share is as high."""
    total, right = num_images + num_others, hits + other_hits
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    counts = np.arange(max(0, right - num_others), hits + 1)

    def log_ways(of: int, taken: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.asarray(log_factorial[of] - log_factorial[taken] - log_factorial[of - taken])

    logs = log_ways(num_images, counts) + log_ways(num_others, right - counts)
    probabilities = np.exp(logs - log_ways(total, np.array(right)))
    return float(min(1.0, probabilities[:-1].sum() + probabilities[-1] / 2))
