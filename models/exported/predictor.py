from pathlib import Path

import numpy as np
from pydantic import ValidationError

from core.errors import UserError
from core.files import file_sha256
from data.images.decode import Pixels
from models.exported.manifest import INT8_FILE, MODEL_FILE, NORMALIZATION, Certainty, ModelManifest
from models.exported.session import Probabilities, open_session, run_session

MANIFEST_FILE = "manifest.json"


class OnnxPredictor:
    """Exported model and its manifest, run by onnxruntime, without torch."""

    file = MODEL_FILE

    def __init__(self, folder: Path, *, num_threads: int = 0) -> None:
        """Load the model and `manifest.json` from `folder`. 0 threads means one thread per core.

        Raises:
            UserError: a file is missing, or the model does not belong to the manifest.

        """
        self.folder, self.manifest = folder, read_model_manifest(folder)
        model = folder / self.file
        if not model.is_file():
            raise UserError(f"{model} is missing: package the model again with `convoy package`")
        if file_sha256(model) != self.manifest.files.get(self.file):
            raise UserError(f"{model} was altered after it was exported: package the model again with `convoy package`")
        self.num_bytes = model.stat().st_size
        self._session = open_session(model, num_threads)
        said = self._session.get_modelmeta().custom_metadata_map.get(NORMALIZATION)
        self.manifest.require_normalization(self.file, said)

    def __call__(self, images: Pixels) -> Probabilities:
        """Classify images, uint8 [N, crop, crop, 3], into probabilities, float32 [N, num_classes]."""
        return run_session(self._session, images)


class Int8Predictor(OnnxPredictor):
    """`OnnxPredictor` for the int8 model."""

    file = INT8_FILE


def entropy(probabilities: Probabilities) -> Probabilities:
    """Return the entropy [N] of probabilities [N, num_classes], in nats."""
    return np.asarray(-(probabilities * np.log(probabilities.clip(1e-12))).sum(axis=1))


def is_uncertain(probabilities: Probabilities, certainty: Certainty | None) -> bool:
    """Whether one image's probabilities [num_classes] are uncertain. Without thresholds, no answer is uncertain."""
    if certainty is None:
        return False
    is_improbable = probabilities.max() < certainty.threshold
    return bool(is_improbable or entropy(probabilities[None])[0] > certainty.max_entropy)


def read_model_manifest(folder: Path) -> ModelManifest:
    """Read the manifest beside an exported model.

    Raises:
        UserError: the manifest is missing or damaged.

    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(f"{path} is missing: package the model again with `convoy package`")
    try:
        return ModelManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged: package the model again with `convoy package`") from None
