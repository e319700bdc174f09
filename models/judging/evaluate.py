"""What a trained network is worth on images that it has not seen. N images, C classes."""

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
    """A split: the labels, int64 [N], and the images on request, uint8 [B, S, S, 3]."""

    labels: Labels

    def __len__(self) -> int: ...

    def gather(self, indices: Labels) -> Pixels:
        """Give images in the order of `indices`."""
        ...


class Evaluation(BaseModel):
    """The figures of one evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_images: int
    accuracy: float
    top5_accuracy: float
    loss: float
    """mean negative log-likelihood, in nats"""
    class_accuracy: dict[str, float]
    """share of a class's images that are recognized; classes without images are left out"""
    figures: dict[str, float] = {}
    """those of `evaluation.metrics`, by the names of the functions"""

    @property
    def metrics(self) -> dict[str, float]:
        """The same under the names that the tracking uses."""
        return {
            "test/accuracy": self.accuracy,
            "test/top5_accuracy": self.top5_accuracy,
            "test/loss": self.loss,
            "test/worst_class_accuracy": min(self.class_accuracy.values()),
            **{f"test/{name}": value for name, value in self.figures.items()},
        }


@dataclass(frozen=True)
class Predictions:
    """What a model says of every image of a split: probabilities [N, C], labels [N]."""

    probabilities: Probabilities
    labels: Labels
    classes: tuple[str, ...]

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        """Whether the likeliest class is the true one, [N]."""
        hits: npt.NDArray[np.bool_] = self.probabilities.argmax(axis=1) == self.labels
        return hits

    def summarize(self) -> Evaluation:
        """Count."""
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
        """Indices of the wrong predictions that the model was surest of, the surest first."""
        wrong = np.flatnonzero(self.probabilities.argmax(axis=1) != self.labels)
        sureness = self.probabilities[wrong].max(axis=1)
        surest: Labels = wrong[np.argsort(-sureness, kind="stable")[:count]]
        return surest

    def _ranks(self) -> Labels:
        """Number of classes that are held likelier than the true one, [N]."""
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
    """Run a model over a split, or over its first `limit` images, cropped at the centre to what the model sees."""
    count = min(len(images), limit or len(images))
    batches = [np.arange(start, min(start + BATCH_SIZE, count)) for start in range(0, count, BATCH_SIZE)]
    probabilities = [model(center_crop(images.gather(batch), crop)) for batch in batches]
    return Predictions(np.concatenate(probabilities), images.labels[:count], classes)


def ten_crop_accuracy(model: Callable[[Pixels], Probabilities], images: Images, crop: int, *, mirror: bool) -> float:
    """Share of a split that is classified correctly by the mean of ten answers an image (AlexNet's paper, section 4.1).

    They are the four corners and the centre, and their mirror images where `mirror` allows it, otherwise these five. It
    costs as many forward passes over the whole split as there are crops, and no more memory than one.
    """
    hits = 0
    for start in range(0, len(images), BATCH_SIZE):
        batch = np.arange(start, min(start + BATCH_SIZE, len(images)))
        crops = ten_crops(images.gather(batch), crop, mirror=mirror)
        answers = reduce(np.add, (model(square) for square in crops))
        hits += int((answers.argmax(axis=1) == images.labels[batch]).sum())
    return hits / len(images)


def ten_crops(images: Pixels, size: int, *, mirror: bool) -> Iterator[Pixels]:
    """Cut images [N, S, S, 3] at the corners and the centre, each [N, size, size, 3], and mirror each left to right."""
    end = images.shape[1] - size
    for top, left in ((0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)):
        square = images[:, top : top + size, left : left + size]
        yield np.ascontiguousarray(square)
        if mirror:
            yield np.ascontiguousarray(square[:, :, ::-1])
