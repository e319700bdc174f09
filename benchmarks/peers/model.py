"""Model of all peers: the decoding and the network of Convoy's endpoint."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import InferenceSession

from data.images.decode import decode
from models.exported.manifest import ModelManifest
from models.exported.predictor import read_model_manifest
from serving.targets import TARGETS, Runtime

TOP_K = 5


class Model:
    """Exported model. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Load the model with onnxruntime's default settings: one thread per core."""
        self.manifest = read_model_manifest(folder)
        path = folder / served_on_cpu(self.manifest).model_file
        self._session = InferenceSession(path, providers=["CPUExecutionProvider"])

    def classify(self, image: bytes) -> dict[str, Any]:
        """Return the likeliest classes for the bytes of an image."""
        pixels = decode(image, self.manifest.preprocessing)
        ((probabilities,),) = self._session.run(["probabilities"], {"image": pixels[None]})
        likeliest = np.argsort(-probabilities, kind="stable")[:TOP_K]
        return {
            "predictions": [
                {"label": self.manifest.classes[index], "probability": float(probabilities[index])}
                for index in likeliest
            ]
        }


def served_on_cpu(manifest: ModelManifest) -> Runtime:
    """Return the runtime of Convoy's target `cpu`, so that all servers use the same file."""
    return next(runtime for runtime in TARGETS["cpu"].runtimes if runtime.model_file in manifest.files)


def from_command_line() -> tuple[Path, int]:
    """Return the arguments of a peer: the folder of the exported model, and the port to listen on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    return arguments.model, arguments.port
