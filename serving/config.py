from typing import Literal

from pydantic import Field

from data.config import Section


class ServingConfig(Section):
    """How the champion is packed and served."""

    target: Literal["cpu", "gpu"] = "cpu"
    """what the endpoint runs on; cpu: onnxruntime; gpu: torch in bf16 (without a GPU, slowly)"""
    host: str = "127.0.0.1"
    """address that `convoy serve` listens on"""
    port: int = Field(3000, ge=0, le=65535)
    """port that `convoy serve` listens on"""
    top_k: int = Field(5, ge=1)
    """number of classes in an answer, the likeliest first"""
    max_body_mb: float = Field(32, gt=0)
    """larger requests are refused with status 413"""
