"""What all peers serve: the decoding and the network of the endpoint that they are held against."""

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
    """An exported model; safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        """Load it with onnxruntime's own settings: a thread for each core."""
        self.manifest = read_model_manifest(folder)
        path = folder / served_on_cpu(self.manifest).model_file
        self._session = InferenceSession(path, providers=["CPUExecutionProvider"])

    def classify(self, image: bytes) -> dict[str, Any]:
        """From the bytes of an image to its likeliest classes."""
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
    """How Convoy's target `cpu` computes a model: all serve the same file."""
    return next(runtime for runtime in TARGETS["cpu"].runtimes if runtime.model_file in manifest.files)


def from_command_line() -> tuple[Path, int]:
    """What a peer is started with: the folder of the exported model, and the port to listen on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    return arguments.model, arguments.port
