"""Python interface: the commands as functions with typed results, exported by `import convoy`."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tqdm import tqdm

from core.errors import UserError
from core.tool import shows_progress
from pipelines import config as parameters
from pipelines.config import Config
from pipelines.settings import prepare_environment

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from models.judging.evaluate import Evaluation
    from serving.endpoint import classifier

    ImageLike = str | os.PathLike[str] | bytes | Image | npt.NDArray[np.uint8]

BATCH = 32
"""Batch size of predictions."""


@dataclass(frozen=True, repr=False)
class PreparedData:
    """Result of `prepare`."""

    version: str
    """MD5 of data/prepared, as in DVC"""
    splits: dict[str, dict[str, int]]
    """number of images by class, for each split"""
    num_rejected: int
    warnings: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the network's outputs."""
        return tuple(self.splits["train"])

    def __repr__(self) -> str:
        counts = {split: sum(classes.values()) for split, classes in self.splits.items()}
        parts = ", ".join(f"{split} {count:,}" for split, count in counts.items())
        images = f"{sum(counts.values()):,} images in {len(self.classes)} classes ({parts})"
        return f"PreparedData({self.version[:8]}: {images}, {self.num_rejected:,} rejected)"


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """Registered version, the result of `train`."""

    name: str
    version: str
    run_id: str
    data_version: str
    aliases: tuple[str, ...]
    metrics: dict[str, float]

    def __repr__(self) -> str:
        known = [*self.aliases, f"test accuracy {self.metrics['test/accuracy']:.4f}", f"run {self.run_id[:8]}"]
        return f"TrainedModel({self.name} v{self.version}: {', '.join(known)})"


@dataclass(frozen=True, repr=False)
class Prediction:
    """Prediction for one image."""

    probabilities: dict[str, float]
    """probabilities of all classes, likeliest first"""
    uncertain: bool
    """whether the model's thresholds call the answer uncertain"""

    @property
    def label(self) -> str:
        """The likeliest class."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """The probability of the likeliest class."""
        return self.probabilities[self.label]

    def __repr__(self) -> str:
        return f"Prediction({self.label!r} {self.probability:.3f}{', uncertain' if self.uncertain else ''})"


def load_config(project: str | os.PathLike[str] = ".", overrides: Sequence[str] = ()) -> Config:
    """Read the parameters of a project, with overrides such as `training.max_epochs=3`.

    Raises:
        UserError: the folder is no project, or a value is invalid.

    """
    return parameters.load_config(Path(project) / parameters.PARAMS, overrides)


def prepare(config: Config, project: str | os.PathLike[str] = ".") -> PreparedData:
    """Bring the data of a project up to date, like `convoy data prepare`.

    Raises:
        UserError: the images cannot be used.

    """
    with _inside(project):
        from data.manifest import read_data_manifest
        from data.quality.report import data_report
        from pipelines.session import run_flow
        from pipelines.workspace import PREPARED

        version: str = run_flow("prepare_data", config)
        manifest = read_data_manifest(PREPARED)
        warnings = tuple(data_report(PREPARED)["warnings"])
    splits = {str(split): dict(manifest.splits[split]) for split in manifest.splits}
    return PreparedData(version, splits, len(manifest.rejected), warnings)


def train(config: Config, project: str | os.PathLike[str] = ".") -> TrainedModel:
    """Train on the prepared data of a project, and submit the model to the gate, like `convoy train`.

    Raises:
        UserError: nothing has been prepared, or the gate refuses the model.

    """
    with _inside(project):
        from pipelines.session import run_flow
        from pipelines.workspace import open_registry, open_tracking, require_data_version, training_job

        data_version = require_data_version()
        run_flow("train_model", config, data_version)
        tracking, registry = open_tracking(config), open_registry(config)
        # Fine-tuning that is worse than its probe is not registered. Then the probe is the result.
        trained = (tracking.find_trained(training_job(one, data_version).key) for one in reversed(config.stages))
        run, found = next((run, found) for run in trained if run and (found := registry.by_run(run.run_id)))
        metrics = tracking.get(run.run_id).metrics
    return TrainedModel(found.name, found.version, found.run_id, found.data_version, found.aliases, metrics)


def evaluate(config: Config, project: str | os.PathLike[str] = ".") -> "Evaluation":
    """Measure the champion of a project on today's test images, like `convoy evaluate`.

    Raises:
        UserError: there is no champion, or the champion has other classes.

    """
    with _inside(project):
        from models.judging.gate import measure_model
        from models.judging.metrics import evaluate as measure
        from pipelines.workspace import PREPARED, RAW, require_champion

        _, folder = require_champion(config)
        return measure(measure_model(folder, RAW, PREPARED), config.evaluation.metrics)


class Classifier:
    """Registered model for predictions."""

    def __init__(self, model: "classifier.Classifier") -> None:
        """Wrap a loaded model."""
        self._model = model

    @classmethod
    def from_registry(cls, name: str = "classifier@champion", project: str | os.PathLike[str] = ".") -> Self:
        """Load a model of a project's registry by alias, `classifier@champion`, or by version, `classifier/3`.

        Raises:
            UserError: there is no such version.

        """
        model, at, alias = name.partition("@")
        model, _, version = (model, "", "") if at else name.partition("/")
        if not model or not (alias or version):
            raise UserError(f"{name}: expected NAME@ALIAS or NAME/VERSION, such as classifier@champion or classifier/3")
        with _inside(project):
            from models.tracking.registry import Registry
            from pipelines.settings import Settings
            from pipelines.workspace import MODELS, ROOT
            from serving.endpoint.classifier import Classifier as Loaded

            registry = Registry(Settings().tracking_uri(ROOT), model)
            found = registry.by_alias(alias) if alias else registry.find(version)
            if found is None:
                raise UserError(f"the registry of {Path.cwd()} has no {name}: `convoy run` trains and registers models")
            return cls(Loaded(registry.download(found, MODELS)))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self._model.manifest.classes)

    def predict(self, images: "ImageLike | Sequence[ImageLike]") -> list[Prediction]:
        """Classify one image or a sequence of images: paths, bytes of files, PIL images, or uint8 arrays [H, W, 3].

        Raises:
            UserError: an image is not usable.

        """
        several = [images] if isinstance(images, str | bytes) or not isinstance(images, Sequence) else images
        is_shown = shows_progress() and len(several) > BATCH
        found: list[Prediction] = []
        with ThreadPoolExecutor() as pool, tqdm(total=len(several), unit="image", disable=not is_shown) as progress:
            for first in range(0, len(several), BATCH):
                batch = list(pool.map(self._decode, several[first : first + BATCH]))
                found += self._predict(batch)
                progress.update(len(batch))
        return found

    def _decode(self, image: "ImageLike") -> "npt.NDArray[np.uint8]":
        from data.images.decode import DecodeError

        try:
            return self._model.decode(_encoded(image))
        except (DecodeError, OSError) as error:
            name = str(image) if isinstance(image, str | os.PathLike) else type(image).__name__
            raise UserError(f"{name}: {getattr(error, 'strerror', None) or error}") from None

    def _predict(self, batch: "list[npt.NDArray[np.uint8]]") -> Iterator[Prediction]:
        import numpy as np

        for probabilities in self._model.predict(np.stack(batch)):
            answer = self._model.answer(probabilities, len(self.classes))
            shares = {one["label"]: one["probability"] for one in answer["predictions"]}
            yield Prediction(shares, answer["uncertain"])

    def __repr__(self) -> str:
        known = self._model.manifest
        what = f"{known.name} v{known.version}: {known.network}"
        return f"Classifier({what}, {len(known.classes)} classes, run {known.run_id[:8]})"


def _encoded(image: "ImageLike") -> bytes:
    """Return the bytes of an image file, so that the model decodes every image like the image of a request."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    from PIL import Image

    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    with BytesIO() as file:
        picture.save(file, "PNG")
        return file.getvalue()


@contextmanager
def _inside(project: str | os.PathLike[str]) -> Iterator[None]:
    """Work in the folder of a project, with the environment of its commands. Restore both at the end."""
    before = dict(os.environ)
    try:
        with chdir(project):
            prepare_environment(Path())
            yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
