"""From trained weights to what an endpoint loads: one ONNX file, uint8 pixels in, probabilities out."""

import base64
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.decode import Pixels, Preprocessing
from data.manifest import DataManifest
from models.classifier import ImageClassifier
from models.manifest import Golden
from models.predictor import MODEL_FILE, Probabilities

OPSET = 18


class ServedNetwork(nn.Module):
    """Normalization, network and softmax: uint8 [N, C, C, 3] to probabilities [N, num_classes]."""

    def __init__(self, classifier: ImageClassifier) -> None:
        """Take the parts that an endpoint needs."""
        super().__init__()
        self.normalize, self.network = classifier.normalize, classifier.network

    def forward(self, images: Tensor) -> Tensor:
        """Classify cropped images."""
        return torch.softmax(self.network(self.normalize(images)), dim=1)


class TorchPredictor:
    """The trained network with the calling convention of `OnnxPredictor`."""

    def __init__(self, network: ServedNetwork) -> None:
        """Switch to evaluation."""
        self._network = network.eval()

    def __call__(self, images: Pixels) -> Probabilities:
        """Classify images, uint8 [N, crop, crop, 3], into probabilities, float32 [N, num_classes]."""
        with torch.inference_mode():
            return self._network(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]


def export_onnx(network: ServedNetwork, crop: int, folder: Path) -> Path:
    """Write `model.onnx` with a dynamic batch: exported with two images, because a batch of one is burnt in."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODEL_FILE
    example = torch.zeros(2, crop, crop, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # The tracing exporter is deprecated, and starts in a quarter of the time of the other; parity is a gate.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (example,),
            path,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_axes={"image": {0: "batch"}, "probabilities": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
            verbose=False,
        )
    return path


def preprocessing_of(data: DataManifest, crop: int) -> Preprocessing:
    """What an endpoint does to an image: what preparation did, and the crop of the network."""
    return Preprocessing(size=data.size, crop=crop, max_pixels=data.max_pixels)


def make_golden(image: Pixels, probabilities: Probabilities) -> Golden:
    """Keep one cropped image [C, C, 3] and the answer for it."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    return Golden(
        image=base64.b64encode(png.getvalue()).decode(),
        probabilities=tuple(float(value) for value in np.asarray(probabilities).ravel()),
    )
