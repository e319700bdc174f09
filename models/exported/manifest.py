from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from core.errors import UserError
from data.images.decode import Normalization, Preprocessing


class Golden(BaseModel):
    """One test image and its measured probabilities. An endpoint with a different answer is not ready."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    """lossless PNG of the prepared image, base64"""
    probabilities: tuple[float, ...]


Precision = Literal["fp32", "int8"]
"""Precisions of an ONNX model."""

MODEL_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
PROGRAM_FILE = "model.pt2"
NORMALIZATION = "convoy.normalization"
"""Key of the pixel normalization in a model file's metadata."""


class Int8(BaseModel):
    """Result of int8 quantization: measurements and decision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refusal: str | None
    """why the int8 model is not served; None if it is served"""
    accuracy_drop: dict[str, float]
    """loss of accuracy against fp32, by split"""
    seconds: dict[Precision, dict[int, float]]
    """median CPU time of a batch, by batch size, on one core of the machine that exported the model"""
    num_bytes: dict[Precision, int]
    onnx_sha256: str
    golden: tuple[float, ...]
    """probabilities of the golden image in int8"""


class Certainty(BaseModel):
    """Thresholds for uncertain answers, and the quality of the certain answers, all from validation images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float
    """probability of the likeliest class below which an answer is uncertain"""
    max_entropy: float
    """score for images of no class: entropy of the probabilities, in nats, above which an answer is uncertain"""
    precision: float
    """share of the certain answers that are right"""
    coverage: float
    """share of the answers that are certain"""
    num_images: int


class ModelManifest(BaseModel):
    """Everything that an endpoint must know about an ONNX file. Serving code holds no such values.

    The ONNX graph takes `image`, uint8 [N, crop, crop, 3], and returns `probabilities`, float32 [N, len(classes)]. It
    contains normalization, temperature and softmax.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str | None
    """number in the registry; None before registration"""
    network: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    preprocessing_hash: str
    run_id: str
    data_version: str
    git_commit: str | None
    metrics: dict[str, float]
    onnx_sha256: str
    program_sha256: str | None = None
    """hash of the `torch.export` program with the same input and output; None if the model has no program"""
    golden: Golden
    int8: Int8 | None = None
    """None if int8 was not tried"""
    temperature: float = 1.0
    """divisor of the logits, chosen on validation images"""
    certainty: Certainty | None = None
    """None if there were too few validation images; then no answer is uncertain"""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.preprocessing_hash != self.preprocessing.hash:
            raise ValueError("preprocessing and its hash do not belong together")
        return self

    def require_normalization(self, file: str, found: str | None) -> None:
        """Compare the manifest with the normalization in a model's file: JSON, or None in files before 2026-12.

        Raises:
            UserError: the two differ. Such a model would give wrong answers.

        """
        expected = self.preprocessing.normalization
        if (Normalization.model_validate_json(found) if found else None) != expected:
            raise UserError(
                f"{file} normalizes pixels otherwise than its manifest says (preprocessing {self.preprocessing_hash}): "
                "export it again with `convoy run`"
            )

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file from which the model can be loaded."""
        int8 = self.int8.onnx_sha256 if self.int8 and self.int8.refusal is None else None
        files = {MODEL_FILE: self.onnx_sha256, INT8_FILE: int8, PROGRAM_FILE: self.program_sha256}
        return {name: sha256 for name, sha256 in files.items() if sha256}

    def golden_answer(self, model_file: str) -> tuple[float, ...]:
        """Return the probabilities of the golden image. A quantized model has its own."""
        return self.int8.golden if model_file == INT8_FILE and self.int8 else self.golden.probabilities
