import base64
from pathlib import Path
from pkgutil import resolve_name
from typing import TypedDict

import numpy as np

from data.decode import decode
from data.errors import UserError
from models.manifest import ModelManifest
from models.predictor import Probabilities
from serving.targets import ONNXRUNTIME, Runtime


class Prediction(TypedDict):
    """One class and its share of the network's belief; all classes together have 1."""

    label: str
    probability: float


class ModelId(TypedDict):
    """Where the answer comes from: the registered version, the run that trained it, the data it was trained on."""

    name: str
    version: str | None
    run_id: str
    data_version: str


class Answer(TypedDict):
    """The body of a 200 from /classify."""

    predictions: list[Prediction]
    model: ModelId


class Classifier:
    """From the bytes of an image to an answer: decoding, prediction, class names. Safe to call from several threads."""

    def __init__(self, folder: Path, runtime: Runtime = ONNXRUNTIME) -> None:
        """Load the model in `folder` by `runtime` and let it classify its golden image, which also warms it up.

        Raises:
            UserError: a file is missing or was altered, or the model answers its golden image otherwise than measured.

        """
        self._predict = resolve_name(runtime.predictor)(folder)
        self._tolerance = runtime.tolerance
        self.manifest: ModelManifest = self._predict.manifest
        self._check_golden()

    def classify(self, image: bytes, top_k: int) -> Answer:
        """Classify the bytes of an image file; the `top_k` likeliest classes, or all where there are fewer.

        Raises:
            DecodeError: these bytes are no usable image.

        """
        (probabilities,) = self._predict(decode(image, self.manifest.preprocessing)[None])
        likeliest = np.argsort(-probabilities, kind="stable")[:top_k]
        return {
            "predictions": [
                {"label": self.manifest.classes[index], "probability": float(probabilities[index])}
                for index in likeliest
            ],
            "model": {
                "name": self.manifest.name,
                "version": self.manifest.version,
                "run_id": self.manifest.run_id,
                "data_version": self.manifest.data_version,
            },
        }

    def _check_golden(self) -> None:
        measured = np.array(self.manifest.golden.probabilities, dtype=np.float32)
        answered = self._predict_golden()
        if answered.shape != measured.shape:
            raise UserError(
                f"the model gives {answered.size} probabilities for its golden image where {measured.size} were "
                "measured: export it again"
            )
        difference = float(np.abs(answered - measured).max())
        # Negated, so that NaN is a difference too. Where there are many classes or little belief all probabilities are
        # small and differ little: then only the order tells two models apart.
        if not difference <= self._tolerance or answered.argmax() != measured.argmax():
            raise UserError(
                f"the model answers its golden image otherwise than measured (by {difference:.2g}, allowed "
                f"{self._tolerance:g}): export it again, or serve it with the packages it was measured with"
            )

    def _predict_golden(self) -> Probabilities:
        preprocessing = self.manifest.preprocessing
        # The golden image is stored after the crop: resizing to the crop leaves it as it is.
        stored = preprocessing.model_copy(update={"size": preprocessing.crop})
        (probabilities,) = self._predict(decode(base64.b64decode(self.manifest.golden.image), stored)[None])
        return np.asarray(probabilities)
