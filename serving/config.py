from typing import Annotated

from pydantic import AfterValidator, Field

from core.extensions import ExtensionPoint, short_name
from core.sections import Section
from serving.targets import TARGETS

TARGET = ExtensionPoint(
    "serving.target", "convoy.targets", {name: f"serving.targets:{name.upper()}" for name in TARGETS}
)
"""Targets of an endpoint, each by its `Target`."""

SAMPLES_DIR = "CONVOY_SAMPLES_DIR"
"""Environment variable with the folder for an endpoint's samples. Without it, no samples are stored."""


class ServingConfig(Section):
    """Packaging and serving of the champion."""

    target: Annotated[str, AfterValidator(TARGET.accept)] = "cpu"
    """cpu: onnxruntime; gpu: torch in bf16; edge: onnxruntime on one core and in 256 MB; or my_file:TARGET"""
    host: str = "127.0.0.1"
    """address on which `convoy serve` listens"""
    port: int = Field(3000, ge=0, le=65535)
    """port on which `convoy serve` listens"""
    top_k: int = Field(5, ge=1)
    """number of classes in an answer, likeliest first"""
    max_body_mb: float = Field(32, gt=0)
    """larger requests are refused with status 413; target edge refuses all above 6"""
    max_batch_images: int = Field(64, ge=1, le=1000)
    """maximum number of images in one request to /classify/batch, which has at most max_body_mb"""
    max_queue: int = Field(128, ge=1)
    """maximum number of images that are decoded, predicted or waiting; further requests get status 503"""
    deadline_seconds: float = Field(10, gt=0, le=25)
    """a request without an answer after this time gets status 503"""
    allow_anonymous: bool = False
    """let `convoy serve` listen without tokens on an address that other machines can reach"""
    token_requests_per_second: float | None = Field(None, gt=0)
    """mean number of requests per second for one token; further requests get status 429; null: no limit"""
    token_images_per_second: float | None = Field(None, gt=0)
    """mean number of images per second for one token, including the images of batches; null: no limit"""
    token_explanations: int | None = Field(None, ge=1)
    """maximum number of waiting explanations for one token; null: as many as there is room for"""
    examples: int = Field(0, ge=0, le=24)
    """number of packaged test images, which all visitors of the endpoint's page can see and try; 0: none"""
    access_log: bool = False
    """write a line of JSON to stdout for each request, with its id, status and duration"""
    samples: int = Field(0, ge=0, le=10_000)
    """images per day whose probabilities, brightness and sharpness are stored for `convoy drift`; 0: none"""
    samples_days: float = Field(7, gt=0)
    """days for which these values are stored"""

    @property
    def target_name(self) -> str:
        """Name of the target in tags, paths and containers."""
        return short_name(self.target).lower()
