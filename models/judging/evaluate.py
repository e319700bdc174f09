"""Evaluation of a model on images outside its training. Shapes: N images, C classes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from data.batches.shards import Indices as Labels
from data.batches.shards import center_crop
from data.images.decode import Pixels
from models.exported.session import Probabilities

BATCH_SIZE = 128
TEN_CROP_METRIC = "test/ten_crop_accuracy"


class Images(Protocol):
    """Split with labels, int64 [N], and images on demand, uint8 [B, S, S, 3]."""

    labels: Labels

    def __len__(self) -> int: ...

    def gather(self, indices: Labels) -> Pixels:
        """Return images in the order of `indices`."""
        ...


class Evaluation(BaseModel):
    """Figures of one evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_images: int
    accuracy: float
    top5_accuracy: float
    loss: float
    """mean negative log-likelihood, in nats"""
    class_accuracy: dict[str, float]
    """accuracy of each class; classes without images are left out"""
    figures: dict[str, float] = {}
    """figures of `evaluation.metrics`, by the names of the functions"""

    @property
    def metrics(self) -> dict[str, float]:
        """Figures under their names in MLflow."""
        return {
            "test/accuracy": self.accuracy,
            "test/top5_accuracy": self.top5_accuracy,
            "test/loss": self.loss,
            "test/worst_class_accuracy": min(self.class_accuracy.values()),
            **{f"test/{name}": value for name, value in self.figures.items()},
        }


@dataclass(frozen=True)
class Predictions:
    """Predictions for every image of a split: probabilities [N, C], labels [N]."""

    probabilities: Probabilities
    labels: Labels
    classes: tuple[str, ...]

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        """Whether the likeliest class is the true one, [N]."""
        hits: npt.NDArray[np.bool_] = self.probabilities.argmax(axis=1) == self.labels
        return hits

    def summarize(self) -> Evaluation:
        """Compute the figures."""
        hits = self.hits
        likelihood = np.take_along_axis(self.probabilities, self.labels[:, None], axis=1)[:, 0]
        return Evaluation(
            num_images=len(self.labels),
            accuracy=float(hits.mean()),
            top5_accuracy=float((self._ranks() < 5).mean()),
            loss=float(-np.log(likelihood.clip(1e-12)).mean()),
            class_accuracy={
                name: float(hits[self.labels == index].mean())
                for index, name in enumerate(self.classes)
                if (self.labels == index).any()
            },
        )

    def confusion(self) -> npt.NDArray[np.int64]:
        """Count images by true class (rows) and predicted class (columns), [C, C]."""
        counts = np.zeros((len(self.classes),) * 2, dtype=np.int64)
        np.add.at(counts, (self.labels, self.probabilities.argmax(axis=1)), 1)
        return counts

    def worst_errors(self, count: int) -> Labels:
        """Return the indices of the wrong predictions with the highest confidence, highest first."""
        wrong = np.flatnonzero(self.probabilities.argmax(axis=1) != self.labels)
        sureness = self.probabilities[wrong].max(axis=1)
        surest: Labels = wrong[np.argsort(-sureness, kind="stable")[:count]]
        return surest

    def _ranks(self) -> Labels:
        """Number of classes with a higher probability than the true class, [N]."""
        truth = np.take_along_axis(self.probabilities, self.labels[:, None], axis=1)
        ranks: Labels = (self.probabilities > truth).sum(axis=1)
        return ranks


def predict(
    model: Callable[[Pixels], Probabilities],
    images: Images,
    classes: tuple[str, ...],
    crop: int,
    *,
    limit: int | None = None,
) -> Predictions:
    """Run a model over a split, or over its first `limit` images, with a centre crop of `crop` pixels."""
    count = min(len(images), limit or len(images))
    batches = [np.arange(start, min(start + BATCH_SIZE, count)) for start in range(0, count, BATCH_SIZE)]
    probabilities = [model(center_crop(images.gather(batch), crop)) for batch in batches]
    return Predictions(np.concatenate(probabilities), images.labels[:count], classes)


def ten_crop_accuracy(model: Callable[[Pixels], Probabilities], images: Images, crop: int, *, mirror: bool) -> float:
    """Return the accuracy of the mean of ten predictions per image (AlexNet's paper, section 4.1).

    The crops are the four corners and the centre, with `mirror` also their mirror images. Each crop takes a forward
    pass over the whole split. The memory is that of one pass.
    """
    hits = 0
    for start in range(0, len(images), BATCH_SIZE):
        batch = np.arange(start, min(start + BATCH_SIZE, len(images)))
        crops = ten_crops(images.gather(batch), crop, mirror=mirror)
        answers = reduce(np.add, (model(square) for square in crops))
        hits += int((answers.argmax(axis=1) == images.labels[batch]).sum())
    return hits / len(images)


def ten_crops(images: Pixels, size: int, *, mirror: bool) -> Iterator[Pixels]:
    """Crop images [N, S, S, 3] at the corners and the centre to [N, size, size, 3], each also mirrored if `mirror`."""
    end = images.shape[1] - size
    for top, left in ((0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)):
        square = images[:, top : top + size, left : left + size]
        yield np.ascontiguousarray(square)
        if mirror:
            yield np.ascontiguousarray(square[:, :, ::-1])
