import hashlib
from typing import Literal

from data.config import DataConfig

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def split_of(sha256: str, config: DataConfig, *, given: Split | None, missing: frozenset[Split]) -> Split:
    """Choose the split of an image from its content alone.

    Therefore added images move no others, each class is divided in the same proportions up to chance, and identical
    images share a split. `data.preparing.regroup` then moves images that look alike into one split.

    Args:
        sha256: hash of the image's bytes, in hexadecimal.
        config: configuration with the shares of the splits.
        given: the user's split of the image.
        missing: splits that are drawn from the training images: all except train if the user has no splits.

    """
    if given in ("val", "test"):
        return given
    draw = int(hashlib.sha256(f"{config.split_seed}:{sha256}".encode()).hexdigest()[:16], 16) / 2**64
    test_share = config.test_fraction if "test" in missing else 0.0
    val_share = config.val_fraction if "val" in missing else 0.0
    if draw < test_share:
        return "test"
    return "val" if draw < test_share + val_share else "train"
