from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from core.errors import UserError
from data.images.decode import Normalization, Preprocessing


class Golden(BaseModel):
    """One test image and the answer that was measured for it: an endpoint that answers otherwise is not ready."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    """a lossless PNG of the prepared image, base64"""
    probabilities: tuple[float, ...]


Precision = Literal["fp32", "int8"]
"""How an ONNX model computes."""

MODEL_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
PROGRAM_FILE = "model.pt2"
NORMALIZATION = "convoy.normalization"
"""Under this name a model's file says how it normalizes pixels."""


class Int8(BaseModel):
    """What became of the attempt to compute in 8-bit integers: the figures, and what they led to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refusal: str | None
    """why the model is not served so; None: it is"""
    accuracy_drop: dict[str, float]
    """by split: how much of its accuracy the model loses against fp32"""
    seconds: dict[Precision, dict[int, float]]
    """medians of the processor time for a batch of so many images, on one core of the machine that exported"""
    num_bytes: dict[Precision, int]
    onnx_sha256: str
    golden: tuple[float, ...]
    """the answer to the golden image in this precision"""


class Certainty(BaseModel):
    """Which answers are uncertain, chosen on validation images, and what the others are worth there."""

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
    """What travels with the ONNX file: everything an endpoint must know, so that serving holds no number of its own.

    The ONNX graph takes `image`, uint8 [N, crop, crop, 3], and gives `probabilities`, float32 [N, len(classes)];
    normalization, temperature and softmax are inside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str | None
    """number in the registry; None until it is registered"""
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
    """of the `torch.export` program with the same input and output; None where it was exported without one"""
    golden: Golden
    int8: Int8 | None = None
    """None where it was not tried"""
    temperature: float = 1.0
    """what logits are divided by, chosen on validation images"""
    certainty: Certainty | None = None
    """None where the validation images were too few to choose a threshold: no answer is uncertain then"""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.preprocessing_hash != self.preprocessing.hash:
            raise ValueError("preprocessing and its hash do not belong together")
        return self

    def require_normalization(self, file: str, found: str | None) -> None:
        """Compare the manifest with what a model's file says of its normalization: JSON, None in files before 2026-12.

        Raises:
            UserError: the two differ; such a model would answer, and wrongly.

        """
        expected = self.preprocessing.normalization
        if (Normalization.model_validate_json(found) if found else None) != expected:
            raise UserError(
                f"{file} normalizes pixels otherwise than its manifest says (preprocessing {self.preprocessing_hash}): "
                "export it again with `convoy run`"
            )

    @property
    def files(self) -> dict[str, str]:
        """Give the files that the model can be loaded from, with their SHA-256."""
        int8 = self.int8.onnx_sha256 if self.int8 and self.int8.refusal is None else None
        files = {MODEL_FILE: self.onnx_sha256, INT8_FILE: int8, PROGRAM_FILE: self.program_sha256}
        return {name: sha256 for name, sha256 in files.items() if sha256}

    def golden_answer(self, model_file: str) -> tuple[float, ...]:
        """Give the probabilities of the golden image; a quantized model has an answer of its own."""
        return self.int8.golden if model_file == INT8_FILE and self.int8 else self.golden.probabilities
