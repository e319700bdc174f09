"""BentoML as in its documentation: a service with one API that takes a file, with default settings."""

import os
from pathlib import Path
from typing import Any

import bentoml

from benchmarks.peers.model import Model


@bentoml.service
class StockService:
    """Service with one model."""

    def __init__(self) -> None:
        """Load the model, which only the environment can name."""
        self.model = Model(Path(os.environ["PEER_MODEL"]))

    @bentoml.api
    def classify(self, image: Path) -> dict[str, Any]:
        """Classify an uploaded file."""
        return self.model.classify(image.read_bytes())
