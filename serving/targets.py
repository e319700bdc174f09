from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Runtime:
    """Runtime of a model. Several runtimes may have the same precision, because each Bento holds its own."""

    precision: str
    """fp32, int8 or bf16"""
    predictor: str
    """module:class, called with the model's folder and `num_threads`"""
    model_file: str
    """file of the model besides the manifest"""
    tolerance: float
    """maximum difference of a probability from the value measured at export"""


ONNXRUNTIME = Runtime(
    "fp32",
    "models.exported.predictor:OnnxPredictor",
    "model.onnx",
    # Other processors round float32 differently, by about 1e-6. A wrong colour order, scale or crop changes a confident
    # answer by far more.
    tolerance=1e-3,
)
ONNXRUNTIME_INT8 = Runtime(
    "int8",
    "models.exported.predictor:Int8Predictor",
    "model.int8.onnx",
    # Compared with the answer in int8. Some processors add in 32 bits, others saturate at 16: some activations differ
    # by a step or two, of 256.
    tolerance=5e-2,
)
TORCH = Runtime(
    "bf16",
    "models.exported.torch_program:ProgramPredictor",
    "model.pt2",
    # bf16 keeps 8 bits of the activations.
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
"""Packages of the server, for all runtimes."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Target:
    """Kind of machine for an endpoint: a value of `TARGETS`, or a user's target. A Bento holds its target."""

    runtimes: tuple[Runtime, ...]
    """runtimes, best first; the first runtime for which the model was exported and accepted is used"""
    packages: tuple[str, ...]
    """distributions that the Bento needs at run time, without the tools that made the model"""
    threads: int
    """number of images that are decoded at the same time; other images wait"""
    num_cores: int
    """cores for predictions, one at a time or several at the same time; 0: all cores, one prediction at a time"""
    batch_sizes: tuple[int, ...]
    """batch sizes that are timed when a model is packaged; a single size is used without timing"""
    patience_ms: float
    """maximum time for which a batch waits for the next image in decoding; 0: no wait"""
    memory_mb: int
    """memory limit of the container"""
    decoding_mb: int
    """part of memory_mb for images in decoding; an image that may need more is refused"""
    decoding_seconds: float
    """limit for decoding one image on one core; an image that may need more is refused"""
    max_body_mb: int
    """larger requests are refused, even if the configuration allows them; at most four of this size are in memory"""
    cpus: float
    """limit of the container, in cores"""
    platforms: tuple[str, ...]
    """platforms for which the image is built"""
    base_image: str = "python:3.11-slim-bookworm"

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        sizes = self.batch_sizes
        if not self.runtimes or list(sizes) != sorted({*sizes}) or not (len(sizes) == 1 or sizes[0] == 1):
            raise ValueError("expected a runtime or more, and batch_sizes such as (8,) or (1, 2, 4)")
        return self

    def streams(self, cores: int) -> int:
        """Return the number of batches that are predicted at the same time, each on `cores`."""
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
# Many threads decode while one predicts: a GPU predicts faster than a core decodes, and leaves all cores free.
# Batch sizes are not timed, because only a GPU could time them.
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
"""Our targets, by name."""


class Placement(BaseModel):
    """Target and runtime of one model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target
    runtime: Runtime


def requirements(target: Target) -> list[str]:
    """Return the packages of `target` as pip requirements, pinned to the versions installed here.

    A package that is not installed here stays unpinned: uvloop only makes the endpoint faster, so the machine that
    builds a Bento does not need it.
    """
    return [_pin(package) for package in target.packages]


def _pin(package: str) -> str:
    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:
        return package
