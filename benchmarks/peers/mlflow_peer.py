"""MLflow as in its documentation: a pyfunc from code, with one column of images in base64."""

import base64
from pathlib import Path
from typing import Any

import mlflow

from benchmarks.peers.model import Model


class Classifier(mlflow.pyfunc.PythonModel):
    """Wrapper of one model."""

    def load_context(self, context: Any) -> None:
        """Load the model."""
        self._model = Model(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input, params: Any = None) -> list[dict[str, Any]]:  # noqa: ANN001 - MLflow would check it
        """Classify each row."""
        del context, params
        return [self._model.classify(base64.b64decode(image)) for image in model_input["image"]]


mlflow.models.set_model(Classifier())
