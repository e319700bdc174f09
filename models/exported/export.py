"""Export of trained weights for an endpoint, as ONNX and as a `torch.export` program: uint8 pixels to probabilities."""

import base64
import io
import tempfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from core.errors import UserError, one_line
from data.images.decode import Normalization, Pixels, Preprocessing
from data.manifest import DataManifest
from models.exported.manifest import MODEL_FILE, NORMALIZATION, PROGRAM_FILE, Golden
from models.exported.onnx_file import write_onnx
from models.exported.session import Probabilities
from models.training.classifier import ImageClassifier


class ServedNetwork(nn.Module):
    """Normalization, network, temperature and softmax: uint8 [N, C, C, 3] to probabilities [N, num_classes]."""

    def __init__(self, classifier: ImageClassifier, temperature: float = 1.0) -> None:
        """Take the parts that an endpoint needs. Logits are divided by `temperature`."""
        super().__init__()
        self.temperature = temperature
        self.normalize, self.network = classifier.normalize, classifier.network

    def forward(self, images: Tensor) -> Tensor:
        """Classify cropped images."""
        return torch.softmax(self.network(self.normalize(images)) / self.temperature, dim=1)


class TorchPredictor:
    """The trained network with the calling convention of `OnnxPredictor`."""

    def __init__(self, network: ServedNetwork) -> None:
        """Set the network to evaluation mode."""
        self._network = network.eval()

    def __call__(self, images: Pixels) -> Probabilities:
        """Classify images, uint8 [N, crop, crop, 3], into probabilities, float32 [N, num_classes]."""
        with torch.inference_mode():
            return self._network(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]


def export_onnx(network: ServedNetwork, crop: int, folder: Path) -> Path:
    """Write `model.onnx`, with its normalization as metadata."""
    import onnx  # imported here, because the export of programs does not need onnx

    path = write_onnx(network, crop, folder / MODEL_FILE, "probabilities")
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {NORMALIZATION: network.normalize.spec.model_dump_json()})
    onnx.save(model, path)
    return path


class _HalfPrecision(nn.Module):
    """`ServedNetwork` in bf16. Pixel normalization, batch normalization and softmax stay in float32."""

    def __init__(self, served: ServedNetwork) -> None:
        super().__init__()
        self.normalize, self.network = served.normalize, deepcopy(served.network)
        self.temperature = served.temperature
        # torch.export does not keep other memory formats. `load_program` applies channels-last.
        self.network.to(torch.bfloat16).to(memory_format=torch.contiguous_format)
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.float()

    def forward(self, images: Tensor) -> Tensor:
        # Not `self.normalize(images)`, which works block by block on a CPU: the export would record each block.
        pixels = images * self.normalize.scale + self.normalize.offset
        logits = self.network(pixels.permute(0, 3, 1, 2).to(torch.bfloat16))
        return torch.softmax(logits.float() / self.temperature, dim=1)


def export_program(network: ServedNetwork, crop: int, folder: Path) -> Path:
    """Write `model.pt2`, a program in bf16 with a dynamic batch size and without pickled data."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PROGRAM_FILE
    example = torch.zeros(2, crop, crop, 3, dtype=torch.uint8)
    program = torch.export.export(
        _HalfPrecision(network.eval()).eval(),
        (example,),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    program.example_inputs = None  # would be pickled
    torch.export.save(program, path, extra_files={NORMALIZATION: network.normalize.spec.model_dump_json()})
    return path


def require_exportable(classifier: ImageClassifier, crop: int, name: str) -> None:
    """Check, before hours of training, that a user's network can be exported.

    Raises:
        UserError: torch cannot write it as ONNX, or as a program in bf16.

    """
    network = ServedNetwork(deepcopy(classifier))
    with tempfile.TemporaryDirectory() as folder:
        for form, export in (("ONNX", export_onnx), ("a program in bf16", export_program)):
            try:
                export(network, crop, Path(folder))
            except Exception as error:
                raise UserError(
                    f"model.network is {name}, which torch cannot export as {form} ({type(error).__name__}: "
                    f"{one_line(error)}): an endpoint needs that; compute with torch alone, and alike for all images",
                    exit_code=1,
                ) from error


def preprocessing_of(data: DataManifest, crop: int, normalization: Normalization | None = None) -> Preprocessing:
    """Return the preprocessing of an endpoint: that of preparation, and the network's crop and normalization.

    The default normalization is that of the training pixels.
    """
    normalization = normalization or data.color.normalization
    return Preprocessing(size=data.size, crop=crop, max_pixels=data.max_pixels, normalization=normalization)


def make_golden(image: Pixels, probabilities: Probabilities) -> Golden:
    """Make the golden image from a cropped image [C, C, 3] and its probabilities."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    return Golden(
        image=base64.b64encode(png.getvalue()).decode(),
        probabilities=tuple(float(value) for value in np.asarray(probabilities).ravel()),
    )
