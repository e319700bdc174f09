from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType


@dataclass(frozen=True)
class Runtime:
    """What computes a model."""

    predictor: str
    """module:class, called with the model's folder"""
    model_file: str
    """what it loads besides the manifest"""
    checksum: str
    """the field of the manifest that has the file's SHA-256"""
    sources: tuple[str, ...]
    """code that it needs besides what every endpoint needs"""
    tolerance: float
    """largest difference of a probability from the one measured in float32 when the model was exported"""


ONNXRUNTIME = Runtime(
    "models.predictor:OnnxPredictor",
    "model.onnx",
    "onnx_sha256",
    (),
    # Other processors round float32 differently, by 1e-6 or so; a wrong colour order, scale or crop moves a confident
    # answer by far more.
    tolerance=1e-3,
)
TORCH = Runtime(
    "models.program:ProgramPredictor",
    "model.pt2",
    "program_sha256",
    ("models/program.py",),
    # bf16 keeps 8 bits of what passes from layer to layer.
    tolerance=3e-2,
)

SERVER_PACKAGES = (
    "bentoml",
    "numpy",
    "pillow",
    "prometheus-client",
    "pydantic",
    "starlette",
    "python-multipart",
    "uvloop",
    "httptools",
)
"""What answers requests, whatever computes."""


@dataclass(frozen=True)
class Target:
    """What an endpoint runs on: a row of `TARGETS`."""

    runtime: Runtime
    packages: tuple[str, ...]
    """distributions that the Bento needs at run time, without the tools that made the model"""
    workers: int
    """processes that answer requests"""
    threads: int
    """requests that one worker decodes and predicts at the same time; the others wait"""


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "cpu": Target(runtime=ONNXRUNTIME, packages=(*SERVER_PACKAGES, "onnxruntime"), workers=1, threads=2),
        # More threads decode while one predicts: a GPU answers faster than a core decodes.
        "gpu": Target(runtime=TORCH, packages=(*SERVER_PACKAGES, "torch"), workers=1, threads=8),
    }
)


def requirements(target: Target) -> list[str]:
    """Name the packages of `target` as pip does, pinned to the versions installed here.

    A package that is not installed here stays unpinned: uvloop and httptools only make the endpoint faster, and the
    machine that builds a Bento can do without them.
    """
    return [_pin(package) for package in target.packages]


def _pin(package: str) -> str:
    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:
        return package
