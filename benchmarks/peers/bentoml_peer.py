"""BentoML as its documentation serves a model: a service with one API that takes a file, all settings its own."""

import os
from pathlib import Path
from typing import Any

import bentoml

from benchmarks.peers.model import Model


@bentoml.service
class StockService:
    """One model."""

    def __init__(self) -> None:
        """Load the model named in the environment, which is all that a service is told."""
        self.model = Model(Path(os.environ["PEER_MODEL"]))

    @bentoml.api
    def classify(self, image: Path) -> dict[str, Any]:
        """Classify an uploaded file."""
        return self.model.classify(image.read_bytes())
