from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType


@dataclass(frozen=True)
class Target:
    """What an endpoint runs on: a row of `TARGETS`."""

    packages: tuple[str, ...]
    """distributions that the Bento needs at run time; neither torch nor the tools that made the model"""
    workers: int
    """processes that answer requests"""
    threads: int
    """requests that one worker decodes and predicts at the same time; the others wait"""


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "cpu": Target(
            packages=(
                "bentoml",
                "onnxruntime",
                "numpy",
                "pillow",
                "prometheus-client",
                "pydantic",
                "starlette",
                "python-multipart",
                "uvloop",
                "httptools",
            ),
            workers=1,
            threads=2,
        ),
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
