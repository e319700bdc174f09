from typing import Literal

from pydantic import BaseModel, ConfigDict

from data.decode import Preprocessing


class Golden(BaseModel):
    """One test image and the answer that was measured for it: an endpoint that answers otherwise is not ready."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    """a lossless PNG of the prepared image, base64"""
    probabilities: tuple[float, ...]


Precision = Literal["fp32", "int8"]
"""How an exported model computes."""


class Int8(BaseModel):
    """What became of the attempt to compute in 8-bit integers: the figures, and what they led to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refusal: str | None
    """why the model is not served so; None: it is"""
    accuracy_drop: dict[str, float]
    """by split: how much of its accuracy the model loses against fp32"""
    seconds: dict[Precision, dict[int, float]]
    """medians for a batch of so many images, on the machine that exported"""
    num_bytes: dict[Precision, int]
    onnx_sha256: str
    golden: tuple[float, ...]
    """the answer to the golden image in this precision"""


class ModelManifest(BaseModel):
    """What travels with the ONNX file: everything an endpoint must know, so that serving holds no number of its own.

    The ONNX graph takes `image`, uint8 [N, crop, crop, 3], and gives `probabilities`, float32 [N, len(classes)];
    normalization and softmax are inside it.
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
    golden: Golden
    int8: Int8 | None = None
    """None where it was not tried"""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the model can be served in, the best first."""
        return ("int8", "fp32") if self.int8 and self.int8.refusal is None else ("fp32",)

    def sha256(self, precision: Precision) -> str:
        """Give the checksum of a precision's file."""
        return self.int8.onnx_sha256 if precision == "int8" and self.int8 else self.onnx_sha256

    def golden_answer(self, precision: Precision) -> tuple[float, ...]:
        """Give the measured probabilities of the golden image."""
        return self.int8.golden if precision == "int8" and self.int8 else self.golden.probabilities
