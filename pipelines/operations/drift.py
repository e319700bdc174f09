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
from pipelines.workspace import PREPARED, RAW
from serving.endpoint.classifier import Classifier

BATCH = 64


def measure_drift(model: Path, files: Sequence[Path]) -> Drift:
    """Compare image files with today's test images by the model in `model`, and tell the receivers of an alarm.

    Raises:
        UserError: there are too few usable images, or nothing is prepared.

    """
    classifier = Classifier(model)
    predict, spec = classifier.predict, classifier.manifest.preprocessing
    test = OriginalImages(RAW, PREPARED, "test", spec)
    indices = np.arange(len(test))
    before = _measure(predict, (test.gather(indices[start : start + BATCH]) for start in range(0, len(test), BATCH)))
    now = _measure(predict, _read(classifier, files))
    found = find_drift(before, now, classifier.manifest.classes)
    if found.alarms:
        worst = found.alarms[0]
        what = f"{worst.name} {worst.before:.3f} -> {worst.now:.3f}"
        tell("drift", f"{len(found.alarms)} measures have drifted", f"{found.num_images} images; most of all {what}")
    return found


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
