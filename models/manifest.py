from pydantic import BaseModel, ConfigDict

from data.decode import Preprocessing


class Golden(BaseModel):
    """One test image and the answer that was measured for it: an endpoint that answers otherwise is not ready."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    """a lossless PNG of the prepared image, base64"""
    probabilities: tuple[float, ...]


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
    program_sha256: str | None = None
    """of the `torch.export` program with the same input and output; None where it was exported without one"""
    golden: Golden
