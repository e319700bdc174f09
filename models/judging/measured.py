"""A model on today's test images. Shapes: N test images, C classes of the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.batches.originals import OriginalImages
from data.batches.shards import Indices, PreparedImages
from data.manifest import read_data_manifest
from models.exported.manifest import ModelManifest
from models.exported.predictor import OnnxPredictor
from models.exported.session import Probabilities
from models.judging.evaluate import Images, Predictions, predict


@dataclass(frozen=True)
class Measured:
    """Predictions of a model on today's test images, and the images in the model's preprocessing."""

    predictor: OnnxPredictor
    images: Images
    """today's test images, in the model's preprocessing"""
    today: tuple[str, ...]
    """classes that the labels of the images index"""

    @property
    def manifest(self) -> ModelManifest:
        """Manifest of the model."""
        return self.predictor.manifest

    @cached_property
    def probabilities(self) -> Probabilities:
        """Probabilities [N, C], with columns in the order of the model's classes."""
        crop = self.manifest.preprocessing.crop
        return predict(self.predictor, self.images, self.manifest.classes, crop).probabilities

    def among(self, classes: Sequence[str]) -> Predictions:
        """Return the predictions for the test images of some classes. The model chooses only among these classes."""
        columns = [self.manifest.classes.index(name) for name in classes]
        probabilities = self.probabilities[self.indices(classes)][:, columns]
        if len(columns) < len(self.manifest.classes):
            probabilities = probabilities / probabilities.sum(axis=1, keepdims=True).clip(1e-12)
        number_of = np.zeros(len(self.today), dtype=np.int64)
        number_of[[self.today.index(name) for name in classes]] = np.arange(len(classes))
        labels = number_of[self.images.labels[self.indices(classes)]]
        return Predictions(np.asarray(probabilities, dtype=np.float32), labels, tuple(classes))

    def indices(self, classes: Sequence[str]) -> Indices:
        """Return the indices of the test images of some classes, ascending."""
        numbers = [self.today.index(name) for name in classes]
        return np.flatnonzero(np.isin(self.images.labels, numbers))


def measure(folder: Path, raw: Path, prepared: Path) -> Measured:
    """Load the exported model in `folder` and today's test images. Predictions are computed on first use.

    The images have the model's preprocessing: they come from the originals in `raw`, unless `prepared` has their size.

    Raises:
        UserError: nothing is prepared, or an original is missing.

    """
    predictor, today = OnnxPredictor(folder), read_data_manifest(prepared)
    spec = predictor.manifest.preprocessing
    if spec.size == today.size:
        images: Images = PreparedImages(prepared, today, "test")
    else:
        # Today's preparation has decided which images are test images, and therefore which images are too large.
        spec = spec.model_copy(update={"max_pixels": today.max_pixels})
        images = OriginalImages(raw, prepared, "test", spec)
    return Measured(predictor, images, today.classes)


def differing_classes(model: tuple[str, ...], today: tuple[str, ...]) -> str | None:
    """Describe how the classes of a model differ from today's, or return None if they are equal, in the same order."""
    if model == today:
        return None
    differences = [
        f"{word} {', '.join(map(repr, names[:5]))}{' and others' if len(names) > 5 else ''}"
        for word, names in (("has", sorted({*model} - {*today})), ("lacks", sorted({*today} - {*model})))
        if names
    ]
    return f"knows other classes ({'; '.join(differences) or 'in another order'})"
