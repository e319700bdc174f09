"""What a pass over images adds up, where it is computed: nothing waits for a device until somebody asks."""

import torch
from torch import Tensor

COMPARED_TOGETHER = 16
"""Batches whose predictions are compared with their labels at once: each takes longer to call for than to compare."""


class Counts:
    """Sums over images: of their losses, of what was classified rightly, and of one for each."""

    def __init__(self, sums: Tensor | None = None) -> None:
        """Start from sums [3] of an earlier pass, or from nothing."""
        self._sums = torch.zeros(3) if sums is None else sums
        self._loss, self._hits, self._num_images = self._sums.unbind()
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, logits [N, K] and labels, int64 [N]."""
        self._loss.add_(loss.detach(), alpha=len(labels))
        self._waiting.append((logits.detach().argmax(dim=1), labels))
        if len(self._waiting) == COMPARED_TOGETHER:
            self.sums()

    def sums(self) -> Tensor:
        """Give what has been added so far, [3]: a sum of floats in the order of the batches, and two of ones."""
        if self._waiting:
            predicted, labels = (torch.cat(each) for each in zip(*self._waiting, strict=True))
            self._waiting.clear()
            self._hits.add_((predicted == labels).sum())
            self._num_images.add_(len(labels))
        return self._sums
