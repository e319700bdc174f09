from typing import Annotated

from pydantic import AfterValidator, Field

from core.extensions import ExtensionPoint, short_name
from core.sections import Section
from serving.targets import TARGETS

TARGET = ExtensionPoint(
    "serving.target", "convoy.targets", {name: f"serving.targets:{name.upper()}" for name in TARGETS}
)
"""What an endpoint runs on, each by its `Target`."""

SAMPLES_DIR = "CONVOY_SAMPLES_DIR"
"""Environment variable: the folder that an endpoint keeps samples in; without it none are kept."""


class ServingConfig(Section):
    """How the champion is packed and served."""

    target: Annotated[str, AfterValidator(TARGET.accept)] = "cpu"
    """cpu: onnxruntime; gpu: torch in bf16; edge: onnxruntime on one core and in 256 MB; or my_file:TARGET"""
    host: str = "127.0.0.1"
    """address that `convoy serve` listens on"""
    port: int = Field(3000, ge=0, le=65535)
    """port that `convoy serve` listens on"""
    top_k: int = Field(5, ge=1)
    """number of classes in an answer, the likeliest first"""
    max_body_mb: float = Field(32, gt=0)
    """larger requests are refused with status 413, at the edge all above 6"""
    max_batch_images: int = Field(64, ge=1, le=1000)
    """images in one request to /classify/batch; all of them together have at most max_body_mb"""
    max_queue: int = Field(128, ge=1)
    """images that may be decoded, predicted or wait at the same time; beyond it requests are refused with status 503"""
    deadline_seconds: float = Field(10, gt=0, le=25)
    """a request that was not answered after so long is given up with status 503"""
    allow_anonymous: bool = False
    """let `convoy serve` listen where other machines can reach it without asking for a token"""
    token_requests_per_second: float | None = Field(None, gt=0)
    """requests a second that one token may send, in the mean; beyond them the answer is 429; null: any number"""
    token_images_per_second: float | None = Field(None, gt=0)
    """images a second that one token may send, in the mean, those of batches included; null: any number"""
    token_explanations: int | None = Field(None, ge=1)
    """explanations that one token may wait for at the same time; null: as many as there is room for"""
    examples: int = Field(0, ge=0, le=24)
    """test images that are packed with the model, for everyone who may use the endpoint's page to click; 0: none"""
    access_log: bool = False
    """write a line of JSON to stdout for each request, with its id, status and duration"""
    samples: int = Field(0, ge=0, le=10_000)
    """images of a day whose probabilities, brightness and sharpness are kept for `convoy drift`; 0: none"""
    samples_days: float = Field(7, gt=0)
    """days that these measures are kept"""

    @property
    def target_name(self) -> str:
        """What the target is called in tags, paths and containers."""
        return short_name(self.target).lower()
