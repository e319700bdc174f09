"""Linear probe: multinomial logistic regression on the features of a frozen network.

The result is an ordinary network of backbone and last layer. Shapes: N images, D features, K classes.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from core.files import whole_file
from data.batches.shards import Indices, PreparedImages
from data.splits import Split
from models.training.classifier import ImageClassifier
from models.training.features import FeatureExtractor, Features, last_linear
from models.training.job import TrainingJob

STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 3))
"""Candidates for the inverse regularization strength, strongest regularization first, for standardized features."""
MAX_ITERATIONS = 500

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class Head:
    """Last layer of a network, and its quality."""

    weight: npt.NDArray[np.float64]
    """[K, D]"""
    bias: npt.NDArray[np.float64]
    """[K]"""
    strength: float
    """inverse of the regularization"""

    def loss(self, features: Features, labels: Indices) -> float:
        """Mean negative log-likelihood, in nats."""
        logits = self.logits(features)
        logits -= logits.max(axis=1, keepdims=True)
        likelihoods = logits[np.arange(len(labels)), labels] - np.log(np.exp(logits).sum(axis=1))
        return float(-likelihoods.mean())

    def accuracy(self, features: Features, labels: Indices) -> float:
        """Share of the images that are classified correctly."""
        return float((self.logits(features).argmax(axis=1) == labels).mean())

    def logits(self, features: Features) -> npt.NDArray[np.float64]:
        """Return the logits [N, K] of features [N, D]."""
        logits: npt.NDArray[np.float64] = features @ self.weight.T + self.bias
        return logits


@dataclass(frozen=True)
class Labelled:
    """Features [N, D] and labels [N] of a split."""

    features: Features
    labels: Indices


def fit_head(train: Labelled, val: Labelled, num_classes: int) -> Head:
    """Fit the last layer on training images, with the regularization that has the lowest validation loss."""
    from sklearn.linear_model import LogisticRegression  # imported here, because the import takes 3 s

    mean, deviation = train.features.mean(axis=0), train.features.std(axis=0) + 1e-6
    scaled = ((train.features - mean) / deviation).astype(np.float64)
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True, tol=1e-3)
    best: tuple[float, Head] | None = None
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(scaled, train.labels)
        weight, bias = _all_classes(model, num_classes)
        weight = weight / deviation
        head = Head(weight, bias - weight @ mean, strength)
        loss = head.loss(val.features, val.labels)
        if best is not None and loss > best[0]:
            break  # beyond the best strength, the loss only rises
        best = (loss, head)
    assert best is not None
    return best[1]


def _all_classes(model: object, num_classes: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return weight [K, D] and bias [K]. scikit-learn has one row for two classes, and none for an unseen class."""
    coef, intercept, seen = model.coef_, model.intercept_, model.classes_  # type: ignore[attr-defined]
    if len(coef) == 1:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight, bias = np.zeros((num_classes, coef.shape[1])), np.full(num_classes, -1e3)
    weight[seen], bias[seen] = coef, intercept
    return weight, bias


def train_probe(job: TrainingJob, classifier: ImageClassifier, checkpoint: Path, features: Path) -> dict[str, float]:
    """Fit the last layer of a network, and save the network to `checkpoint`. Returns the metrics.

    Args:
        job: the training job, with the images.
        classifier: result of `build_classifier` for the job. Its last layer is replaced.
        checkpoint: path of the network, in the form of every other checkpoint.
        features: folder of the stored features, shared by all trainings.

    """
    extract = FeatureExtractor(classifier, features)
    train, val = (_labelled(job, split, extract) for split in ("train", "val"))
    head = fit_head(train, val, len(job.manifest.classes))
    _put(head, classifier)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(checkpoint) as temporary:
        torch.save(classifier.portable_state() | {"global_step": 0}, temporary)
    metrics = {"probe/strength": head.strength}
    for split, images in (("train", train), ("val", val)):
        metrics[f"{split}/loss"] = head.loss(images.features, images.labels)
        metrics[f"{split}/accuracy"] = head.accuracy(images.features, images.labels)
    _log.info("probe: validation accuracy %.4f, regularization 1/%g", metrics["val/accuracy"], head.strength)
    return metrics


def _labelled(job: TrainingJob, split: Split, extract: FeatureExtractor) -> Labelled:
    images = PreparedImages(job.prepared, job.manifest, split)
    return Labelled(extract(images, split), images.labels)


def _put(head: Head, classifier: ImageClassifier) -> None:
    _, layer = last_linear(classifier.network)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight))
        layer.bias.copy_(torch.from_numpy(head.bias))
