"""`convoy drift`: images from use against the test images of the model."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.errors import UserError
from core.machine import num_cores
from core.tool import shows_progress
from data.batches.originals import OriginalImages
from data.images.decode import DecodeError, Pixels
from models.exported.predictor import OnnxPredictor
from models.judging.drift import Drift, Window, find_drift, measure_traits
from pipelines.operations.notices import tell
from pipelines.operations.samples import SAMPLES
from pipelines.workspace import PREPARED, RAW
from serving.endpoint.classifier import Classifier
from serving.endpoint.samples import model_key, read_samples

BATCH = 64


def measure_drift(model: Path, files: Sequence[Path]) -> Drift:
    """Compare image files with today's test images by the model in `model`, and tell the receivers of an alarm.

    Without files, what endpoints here have sampled is compared.

    Raises:
        UserError: there are too few usable images, or nothing is prepared.

    """
    classifier = Classifier(model)
    manifest = classifier.manifest
    if files:
        now = _measure(classifier.predict, _read(classifier, files))
    else:
        now = sampled(model_key(manifest.name, manifest.version or ""))
    test = OriginalImages(RAW, PREPARED, "test", manifest.preprocessing)
    indices = np.arange(len(test))
    batches = (test.gather(indices[start : start + BATCH]) for start in range(0, len(test), BATCH))
    found = find_drift(_measure(classifier.predict, batches), now, manifest.classes)
    if found.alarms:
        worst = found.alarms[0]
        what = f"{worst.name} {worst.before:.3f} -> {worst.now:.3f}"
        tell("drift", f"{len(found.alarms)} measures have drifted", f"{found.num_images} images; most of all {what}")
    return found


def sampled(model: str) -> Window:
    """Give what endpoints have sampled for a model.

    Raises:
        UserError: nothing.

    """
    window = read_samples(SAMPLES, model)
    if window is None:
        raise UserError(
            f"{SAMPLES} has no samples of {model}: name files, or serve with `convoy serve --set serving.samples=1000`"
        )
    return window


def _measure(predict: OnnxPredictor, batches: Iterator[Pixels]) -> Window:
    windows = [Window(predict(images), measure_traits(images)) for images in batches if len(images)]
    if not windows:
        raise UserError("none of the files is a usable image: `convoy predict` says why")
    return Window.join(windows)


def _read(classifier: Classifier, files: Sequence[Path]) -> Iterator[Pixels]:
    def decode(file: Path) -> Pixels | None:
        try:
            return classifier.decode(file.read_bytes())
        except (DecodeError, OSError):
            return None

    hidden = not shows_progress()
    with ThreadPoolExecutor(num_cores()) as pool, tqdm(total=len(files), unit="image", disable=hidden) as progress:
        for start in range(0, len(files), BATCH):
            batch = [pixels for pixels in pool.map(decode, files[start : start + BATCH]) if pixels is not None]
            progress.update(len(files[start : start + BATCH]))
            yield np.stack(batch) if batch else np.empty((0, 1, 1, 3), dtype=np.uint8)
