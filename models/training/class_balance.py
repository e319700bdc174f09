"""Balancing of classes with very different numbers of training images."""

from collections.abc import Sequence
from typing import Literal

from models.config import TrainingConfig

Balance = Literal["none", "weights", "sampling"]

AUTO_BALANCE: Balance = "sampling"
AUTO_RATIO = 10
"""`auto` balances if the largest class has more than this many times the training images of the smallest class."""

POWERS: dict[Balance, float] = {"weights": 0.5, "sampling": 1.0}
"""0 changes nothing, 1 gives all classes the same total weight, which is too much for weights of the loss."""


def resolve_balance(config: TrainingConfig, counts: Sequence[int]) -> Balance:
    """Resolve `training.class_balance` for classes with `counts` training images."""
    if config.class_balance != "auto":
        return config.class_balance
    return AUTO_BALANCE if max(counts) > AUTO_RATIO * min(counts) else "none"


def class_weights(counts: Sequence[int], balance: Balance) -> list[float]:
    """Return a weight for each class. Rare classes weigh more, and the mean over all training images is 1."""
    raw = [count ** -POWERS[balance] for count in counts]
    mean = sum(weight * count for weight, count in zip(raw, counts, strict=True)) / sum(counts)
    return [weight / mean for weight in raw]
