"""What is done about classes of very different size while a network trains."""

from collections.abc import Sequence
from typing import Literal

from models.config import TrainingConfig

Balance = Literal["none", "weights", "sampling"]

AUTO_BALANCE: Balance = "sampling"
AUTO_RATIO = 10
"""`auto` balances where the largest class has more than this many times the training images of the smallest."""

POWERS: dict[Balance, float] = {"weights": 0.5, "sampling": 1.0}
"""0 leaves the classes as they are, 1 makes them count the same, which weights of the loss do not bear."""


def resolve_balance(config: TrainingConfig, counts: Sequence[int]) -> Balance:
    """Say what `training.class_balance` means for classes with `counts` training images."""
    if config.class_balance != "auto":
        return config.class_balance
    return AUTO_BALANCE if max(counts) > AUTO_RATIO * min(counts) else "none"


def class_weights(counts: Sequence[int], balance: Balance) -> list[float]:
    """Weight each class, so that rare ones weigh more and the mean over all training images is 1."""
    raw = [count ** -POWERS[balance] for count in counts]
    mean = sum(weight * count for weight, count in zip(raw, counts, strict=True)) / sum(counts)
    return [weight / mean for weight in raw]
