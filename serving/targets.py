from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Runtime:
    """What computes a model. Several may compute in one precision: each Bento holds its own."""

    precision: str
    """what it computes in: fp32, int8 or bf16"""
    predictor: str
    """module:class, called with the model's folder and `num_threads`"""
    model_file: str
    """what it loads besides the manifest"""
    tolerance: float
    """largest difference of a probability from the one measured when the model was exported"""


ONNXRUNTIME = Runtime(
    "fp32",
    "models.exported.predictor:OnnxPredictor",
    "model.onnx",
    # Other processors round float32 differently, by 1e-6 or so; a wrong colour order, scale or crop moves a confident
    # answer by far more.
    tolerance=1e-3,
)
ONNXRUNTIME_INT8 = Runtime(
    "int8",
    "models.exported.predictor:Int8Predictor",
    "model.int8.onnx",
    # Held against the measured answer in int8. Where one processor adds in 32 bits another saturates at 16: some
    # activations come out a step or two, of 256, higher or lower.
    tolerance=5e-2,
)
TORCH = Runtime(
    "bf16",
    "models.exported.torch_program:ProgramPredictor",
    "model.pt2",
    # bf16 keeps 8 bits of what passes from layer to layer.
    tolerance=3e-2,
)

SERVER_PACKAGES = (
    "bentoml",
    "numpy",
    "pillow",
    "prometheus-client",
    "pydantic",
    "simplejpeg",
    "starlette",
    "python-multipart",
    "uvicorn",
    "uvloop",
    "httptools",
)
"""What answers requests, whatever computes."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Target:
    """What an endpoint runs on: a row of `TARGETS`, or one of the user's. A Bento holds it."""

    runtimes: tuple[Runtime, ...]
    """ways to compute a model, the best first; used is the first one that the model was exported and accepted for"""
    packages: tuple[str, ...]
    """distributions that the Bento needs at run time, without the tools that made the model"""
    threads: int
    """images that are decoded at the same time; the others wait"""
    num_cores: int
    """that predictions compute on, one by one or several at the same time; 0: all there are, one by one"""
    batch_sizes: tuple[int, ...]
    """numbers of images whose common prediction is timed when a model is packed; one: it is taken without timing"""
    patience_ms: float
    """that a batch waits for the next of the images that are being decoded; 0: it does not wait"""
    memory_mb: int
    """limit of its container"""
    decoding_mb: int
    """of it, for images that are being read; one that may need more is refused"""
    decoding_seconds: float
    """of one core, for reading one image; one that may need more is refused"""
    max_body_mb: int
    """larger requests are refused, also where the configuration allows them; four of these are held at a time"""
    cpus: float
    """limit of its container, in cores"""
    platforms: tuple[str, ...]
    """that its image is built for"""
    base_image: str = "python:3.11-slim-bookworm"

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        sizes = self.batch_sizes
        if not self.runtimes or list(sizes) != sorted({*sizes}) or not (len(sizes) == 1 or sizes[0] == 1):
            raise ValueError("expected a runtime or more, and batch_sizes such as (8,) or (1, 2, 4)")
        return self

    def streams(self, cores: int) -> int:
        """How many batches to predict at the same time, where each computes on `cores`."""
        return self.num_cores // cores if cores else 1


CPU = Target(
    runtimes=(ONNXRUNTIME_INT8, ONNXRUNTIME),
    packages=(*SERVER_PACKAGES, "onnxruntime"),
    threads=2,
    num_cores=2,
    batch_sizes=(1, 2, 4, 8, 16, 32),
    patience_ms=5,
    memory_mb=2048,
    decoding_mb=1024,
    decoding_seconds=5,
    max_body_mb=64,
    cpus=2,
    platforms=("linux/amd64", "linux/arm64"),
)
# More threads decode while one predicts: a GPU answers faster than a core decodes, and leaves all cores to
# that. It is timed nowhere else.
GPU = Target(
    runtimes=(TORCH,),
    packages=(*SERVER_PACKAGES, "torch"),
    threads=8,
    num_cores=0,
    batch_sizes=(64,),
    patience_ms=0,
    memory_mb=16384,
    decoding_mb=4096,
    decoding_seconds=5,
    max_body_mb=256,
    cpus=8,
    platforms=("linux/amd64",),
)
EDGE = Target(
    runtimes=(ONNXRUNTIME_INT8, ONNXRUNTIME),
    packages=(*SERVER_PACKAGES, "onnxruntime"),
    threads=1,
    num_cores=1,
    batch_sizes=(1, 2, 4, 8),
    patience_ms=5,
    memory_mb=256,
    decoding_mb=40,
    decoding_seconds=1,
    max_body_mb=6,
    cpus=1,
    platforms=("linux/amd64", "linux/arm64"),
)

TARGETS: Mapping[str, Target] = MappingProxyType({"cpu": CPU, "gpu": GPU, "edge": EDGE})
"""Ours, each by the name of its constant."""


class Placement(BaseModel):
    """What one model runs on, and what computes it there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target
    runtime: Runtime


def requirements(target: Target) -> list[str]:
    """Name the packages of `target` as pip does, pinned to the versions installed here.

    A package that is not installed here stays unpinned: uvloop only makes the endpoint faster, and the machine that
    builds a Bento can do without it.
    """
    return [_pin(package) for package in target.packages]


def _pin(package: str) -> str:
    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:
        return package
