"""Two models on the same test images in full: overall, by class, image by image, and what each of them costs.

The champion is the model that is there, the challenger the one that may take its place.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from core.errors import UserError
from data.batches.shards import Indices
from data.preparing.stage import INDEX_FILE
from models.exported.manifest import ModelManifest
from models.exported.predictor import OnnxPredictor
from models.exported.timing import time_alternately
from models.judging.calibration import reliability_of
from models.judging.compare import Comparison, GroupDifference, compare, compare_groups, wilson_interval
from models.judging.evaluate import Predictions
from models.judging.measured import Measured, differing_classes

TIMING_SECONDS = 3.0
"""For each size of a batch."""


class Record(BaseModel):
    """A frozen part of a comparison."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFigures(Record):
    """What one model is, what it is worth and what it costs."""

    name: str
    version: str
    run_id: str
    data_version: str
    network: str
    input_size: int
    accuracy: float
    low: float
    high: float
    """ends of the 95 % interval of the accuracy"""
    loss: float
    """mean negative log-likelihood, in nats"""
    calibration_error: float
    """expected calibration error"""
    num_bytes: int
    """of the ONNX file in fp32"""
    int8_bytes: int | None
    """of the ONNX file in int8, where int8 was accepted"""
    seconds: dict[int, float]
    """processor time for a batch of so many images in fp32, on one core"""

    @property
    def title(self) -> str:
        """What the model is called on a page."""
        return f"v{self.version}"


class Answer(Record):
    """What a model says of one image."""

    label: str
    probability: float


class ChangedImage(Record):
    """A test image that one of the models classifies correctly, and the other does not."""

    index: int
    """among today's test images"""
    origin: str
    sha256: str
    label: str
    champion: Answer
    challenger: Answer


class ModelComparison(Record):
    """Everything that two models differ in on today's test images."""

    champion: ModelFigures
    challenger: ModelFigures
    classes: tuple[str, ...]
    """on whose test images the models are compared"""
    overall: Comparison
    by_class: tuple[GroupDifference, ...]
    """the largest loss first"""
    broken: tuple[ChangedImage, ...]
    """images that only the champion classifies correctly, those first of whose wrong answer the challenger is surest"""
    fixed: tuple[ChangedImage, ...]
    """images that only the challenger classifies correctly, those first of whose answer it is surest"""
    notes: tuple[str, ...]
    """what a reader should know before the figures count"""


def compare_models(
    champion: Measured, challenger: Measured, prepared: Path, data_version: str, max_regression: float
) -> ModelComparison:
    """Compare two models that have been measured on the images in `prepared`, which are of `data_version`, if known.

    Models of other classes are compared on the test images of the classes that both know, and choose among these.

    Raises:
        UserError: the models share fewer than two classes with today's images.

    """
    classes = shared_classes(champion, challenger)
    mine, other = challenger.among(classes), champion.among(classes)
    seconds = _time(champion.predictor, challenger.predictor)
    broken, fixed = other.hits & ~mine.hits, mine.hits & ~other.hits
    groups = {name: mine.labels == number for number, name in enumerate(classes)}
    by_class = compare_groups(other.hits, mine.hits, groups)
    images = _Images(prepared, challenger.indices(classes), other, mine)
    return ModelComparison(
        champion=_figures(champion, other, seconds["champion"]),
        challenger=_figures(challenger, mine, seconds["challenger"]),
        classes=classes,
        overall=compare(other.hits, mine.hits, max_regression),
        by_class=tuple(sorted(by_class, key=lambda one: (one.difference, one.name))),
        broken=images.changed(broken),
        fixed=images.changed(fixed),
        notes=tuple(_notes(champion, challenger, classes, data_version)),
    )


def shared_classes(champion: Measured, challenger: Measured) -> tuple[str, ...]:
    """Give the classes that both models know and that there are test images of; all, where all are known.

    Raises:
        UserError: there are fewer than two.

    """
    known = {*champion.manifest.classes} & {*challenger.manifest.classes}
    shared = tuple(name for name in challenger.today if name in known)
    if len(shared) < 2:
        first, second = champion.manifest, challenger.manifest
        raise UserError(
            f"v{first.version} and v{second.version} of {first.name} share {len(shared)} of the classes that are "
            f"prepared here ({', '.join(map(repr, challenger.today[:5]))}): two are needed to compare models"
        )
    return shared


def _notes(champion: Measured, challenger: Measured, classes: Sequence[str], data_version: str) -> list[str]:
    notes = []
    for one in (champion, challenger):
        model = one.manifest
        if why := differing_classes(model.classes, one.today):
            choice = f"it chooses among the {len(classes)} classes that are shared"
            notes.append(f"v{model.version} {why}: {choice}, on their test images only")
        if data_version and model.data_version != data_version:
            notes.append(
                f"v{model.version} was trained on data {model.data_version[:8]}, and the test images are of data "
                f"{data_version[:8]}: it may have been trained on some of them"
            )
    return notes


def _time(champion: OnnxPredictor, challenger: OnnxPredictor) -> dict[str, dict[int, float]]:
    """Time both on one core, in turns."""
    models = {
        name: type(model)(model.folder, num_threads=1)
        for name, model in (("champion", champion), ("challenger", challenger))
    }
    crops = {name: model.manifest.preprocessing.crop for name, model in models.items()}
    return time_alternately(models, crops, TIMING_SECONDS)


def _figures(model: Measured, predictions: Predictions, seconds: dict[int, float]) -> ModelFigures:
    manifest, evaluation = model.manifest, predictions.summarize()
    low, high = wilson_interval(int(predictions.hits.sum()), len(predictions.labels))
    accepted = manifest.int8 if manifest.int8 and manifest.int8.refusal is None else None
    return ModelFigures(
        name=manifest.name,
        version=_version(manifest),
        run_id=manifest.run_id,
        data_version=manifest.data_version,
        network=manifest.network,
        input_size=manifest.preprocessing.crop,
        accuracy=evaluation.accuracy,
        low=low,
        high=high,
        loss=evaluation.loss,
        calibration_error=reliability_of(predictions).error,
        num_bytes=model.predictor.num_bytes,
        int8_bytes=accepted.num_bytes["int8"] if accepted else None,
        seconds=seconds,
    )


def _version(manifest: ModelManifest) -> str:
    return manifest.version or "?"


class _Images:
    """Test images by name, with what two models say of them."""

    def __init__(self, prepared: Path, indices: Indices, champion: Predictions, challenger: Predictions) -> None:
        index = pq.read_table(prepared / INDEX_FILE, columns=["split", "origin", "sha256"]).to_pylist()
        self._rows = [row for row in index if row["split"] == "test"]
        self._indices, self._champion, self._challenger = indices, champion, challenger

    def changed(self, mask: npt.NDArray[np.bool_]) -> tuple[ChangedImage, ...]:
        """Name the images of a mask over those compared, the surest answers of the challenger first."""
        rows = np.flatnonzero(mask)
        sureness = self._challenger.probabilities[rows].max(axis=1)
        return tuple(self._describe(int(row)) for row in rows[np.argsort(-sureness, kind="stable")])

    def _describe(self, row: int) -> ChangedImage:
        index = int(self._indices[row])
        return ChangedImage(
            index=index,
            origin=self._rows[index]["origin"],
            sha256=self._rows[index]["sha256"],
            label=self._challenger.classes[self._challenger.labels[row]],
            champion=_answer(self._champion, row),
            challenger=_answer(self._challenger, row),
        )


def _answer(predictions: Predictions, row: int) -> Answer:
    probabilities = predictions.probabilities[row]
    best = int(probabilities.argmax())
    return Answer(label=predictions.classes[best], probability=float(probabilities[best]))
