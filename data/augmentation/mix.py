"""Mixes pairs of training images and their labels. Shapes: N images, C pixels per side, K classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from data.augmentation.boxes import Box


@dataclass(frozen=True)
class Mixing:
    """How the images of one batch are mixed."""

    kept: float
    """share that an image keeps of its own pixels and its own label"""
    box: Box | None
    """place of the other image (cutmix); None: the images are blended everywhere (mixup)"""
    partners: tuple[int, ...]
    """index of each image's partner; not its neighbour, because neighbours in a shard often have the same label"""

    def blend(self, images: Tensor) -> None:
        """Mix images [N, 3, C, C] in place."""
        if self.box is None:
            images.lerp_(images[list(self.partners)], 1 - self.kept)
            return
        top, left, height, width = self.box
        part = images[..., top : top + height, left : left + width]
        part.copy_(part[list(self.partners)])

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """Mix labels, int64 [N], into shares of the classes, float [N, K]."""
        targets = F.one_hot(labels, num_classes).float()
        return targets[list(self.partners)].lerp(targets, self.kept)


def draw_mixing(mixup: float, cutmix: float, shape: Sequence[int], seed: int) -> Mixing:
    """Draw how a batch of images with `shape` [N, 3, C, C] is mixed.

    `mixup` (Zhang et al. 2018) and `cutmix` (Yun et al. 2019) are the alphas of the kept share's Beta distribution. 0
    switches one off. If both are on, each is used for half of the batches.
    """
    draws = np.random.default_rng(seed)
    cut = bool(draws.random() < 0.5) if mixup and cutmix else not mixup
    alpha = cutmix if cut else mixup
    kept, size = float(draws.beta(alpha, alpha)), shape[-1]
    partners = tuple(draws.permutation(shape[0]).tolist())
    if not cut:
        return Mixing(kept, None, partners)
    box = _box(kept, size, *draws.integers(size, size=2).tolist())
    return Mixing(1 - box[2] * box[3] / size**2, box, partners)


def _box(kept: float, size: int, row: int, column: int) -> Box:
    """Return the square around a pixel that leaves the share `kept`, clipped to the image."""
    half = int(0.5 * (1 - kept) ** 0.5 * size)
    top, left = max(row - half, 0), max(column - half, 0)
    return top, left, min(row + half, size) - top, min(column + half, size) - left
