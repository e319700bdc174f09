"""Comparison of two models on the same test images, and whether the number of images is sufficient."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

Hits = npt.NDArray[np.bool_]
"""[N], whether an image was classified correctly"""
Verdict = Literal["better", "no worse", "worse", "too few images to tell"]

CONFIDENCE = 0.95
Z = 1.959963984540054
"""Standard normal quantile of a two-sided interval at `CONFIDENCE`."""
NUM_RESAMPLES = 20_000
SEED = 0


class PairedDifference(BaseModel):
    """Paired difference of a challenger and a champion on the same images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_images: int
    champion_accuracy: float
    challenger_accuracy: float
    won: int
    """images that only the challenger classifies correctly"""
    lost: int
    """images that only the champion classifies correctly"""
    low: float
    high: float
    """ends of the 95 % interval of the difference in accuracy, challenger minus champion"""
    p_value: float
    """McNemar's exact test, mid-p, two-sided; for one of several groups, adjusted for their number (Holm 1979)"""

    @property
    def difference(self) -> float:
        """Measured difference in accuracy, challenger minus champion."""
        return (self.won - self.lost) / self.num_images


class Comparison(PairedDifference):
    """Paired comparison of a challenger with a champion."""

    verdict: Verdict

    @property
    def figures(self) -> dict[str, float]:
        """Figures under their names in the run and in the ledger."""
        return {
            "gate/champion_accuracy": self.champion_accuracy,
            "gate/challenger_accuracy": self.challenger_accuracy,
            "gate/difference": self.difference,
            "gate/difference_low": self.low,
            "gate/difference_high": self.high,
            "gate/mcnemar_p": self.p_value,
        }

    def __str__(self) -> str:
        return (
            f"{self.verdict}: accuracy {self.challenger_accuracy:.4f} against {self.champion_accuracy:.4f}, "
            f"difference {self.difference:+.4f} (95 % interval {self.low:+.4f} to {self.high:+.4f}), "
            f"{self.won} images won and {self.lost} lost of {self.num_images:,}, McNemar p {self.p_value:.2g}"
        )


def compare(champion: Hits, challenger: Hits, max_regression: float) -> Comparison:
    """Compare two models on the same images, given in the same order.

    With [low, high] the 95 % interval of the difference, the verdict is

    - better: low > 0.
    - no worse: low >= -max_regression.
    - worse: high < 0, and not "no worse".
    - too few images to tell: all else.
    """
    won, lost = int((challenger & ~champion).sum()), int((champion & ~challenger).sum())
    low, high = bootstrap_interval(won, lost, len(champion))
    return Comparison(
        num_images=len(champion),
        champion_accuracy=float(champion.mean()),
        challenger_accuracy=float(challenger.mean()),
        won=won,
        lost=lost,
        low=low,
        high=high,
        p_value=mcnemar_p(won, lost),
        verdict=_verdict(low, high, max_regression),
    )


def _verdict(low: float, high: float, max_regression: float) -> Verdict:
    if low > 0:
        return "better"
    if low >= -max_regression:
        return "no worse"
    return "worse" if high < 0 else "too few images to tell"


def bootstrap_interval(won: int, lost: int, num_images: int) -> tuple[float, float]:
    """Return the 95 % interval of (won - lost) / num_images, by a paired bootstrap over images.

    An image counts +1, -1 or 0, so drawing images with replacement is drawing from a multinomial distribution. One won
    and one lost image are added (Bonett and Price 2012). Without them, the interval of two models that agree on 20
    images would have no width.
    """
    total = num_images + 2
    shares = np.array([won + 1, lost + 1, num_images - won - lost]) / total
    drawn = np.random.default_rng(SEED).multinomial(total, shares, NUM_RESAMPLES)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / total, [tail, 1 - tail])
    return float(low), float(high)


def mcnemar_p(won: int, lost: int) -> float:
    """Return the two-sided mid-p value of McNemar's exact test (Fagerland, Lydersen and Laake 2013)."""
    discordant, fewer = won + lost, min(won, lost)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, discordant + 1)))])
    counts = np.arange(fewer + 1)
    log_ways = log_factorial[discordant] - log_factorial[counts] - log_factorial[discordant - counts]
    probabilities = np.exp(log_ways - discordant * np.log(2))
    return float(min(1.0, 2 * probabilities[:-1].sum() + probabilities[-1]))


def wilson_interval(hits: int, num_images: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of images (Wilson 1927)."""
    share, weight = hits / num_images, Z**2 / num_images
    middle = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * np.sqrt(share * (1 - share) / num_images + weight / (4 * num_images))
    return float(middle - half), float(middle + half)


class GroupDifference(PairedDifference):
    """Comparison of two models on the images of one group, such as a class."""

    name: str

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant, given the number of groups."""
        return self.p_value < 1 - CONFIDENCE


def compare_groups(champion: Hits, challenger: Hits, groups: Mapping[str, Hits]) -> tuple[GroupDifference, ...]:
    """Compare two models on each group of images, given as a mask [N] by name. Empty groups are left out."""
    masks = {name: mask for name, mask in groups.items() if mask.any()}
    found = {name: compare(champion[mask], challenger[mask], 0) for name, mask in masks.items()}
    adjusted = holm([one.p_value for one in found.values()])
    kept = set(PairedDifference.model_fields) - {"p_value"}
    return tuple(
        GroupDifference(name=name, p_value=p_value, **one.model_dump(include=kept))
        for (name, one), p_value in zip(found.items(), adjusted, strict=True)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values, so that the chance of any false alarm is that of a single test (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
