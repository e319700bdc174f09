"""What all peers serve: the decoding and the network of the endpoint that they are held against."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from data.decode import decode
from models.predictor import OnnxPredictor

TOP_K = 5


class Model:
    """An exported model; safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        """Load it, with a thread for each core."""
        self._predict = OnnxPredictor(folder)
        self.manifest = self._predict.manifest

    def classify(self, image: bytes) -> dict[str, Any]:
        """From the bytes of an image to its likeliest classes."""
        (probabilities,) = self._predict(decode(image, self.manifest.preprocessing)[None])
        likeliest = np.argsort(-probabilities, kind="stable")[:TOP_K]
        return {
            "predictions": [
                {"label": self.manifest.classes[index], "probability": float(probabilities[index])}
                for index in likeliest
            ]
        }


def from_command_line() -> tuple[Path, int]:
    """What a peer is started with: the folder of the exported model, and the port to listen on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    return arguments.model, arguments.port
