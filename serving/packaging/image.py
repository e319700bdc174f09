import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from core.errors import UserError
from serving.packaging.bento import Bento
from serving.rollout.docker import docker
from serving.targets import TARGETS

FOLDER = Path(__file__).parent
DOCKERFILE = FOLDER / "image.Dockerfile"
LOCK = FOLDER / "requirements.lock"
"""A link to the clone's own; in a wheel it is a copy."""
SCRIPTS = ("packaging/slim.py", "packaging/bytecode.py", "packaging/sbom.py", "endpoint/healthcheck.py")
SBOM_FILE = "sbom.cdx.json"
"""What is in the image, written beside the Bento."""
SBOM_PATH = f"/opt/convoy/{SBOM_FILE}"
"""The same inside the image."""
INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
"""Environment variables that name this machine's own package index; the first that is set counts."""

_log = logging.getLogger("convoy")


class Image(BaseModel):
    """A container image of a Bento, in the engine's store."""

    model_config = ConfigDict(frozen=True)

    tag: str
    id: str
    size_bytes: int
    """uncompressed, with its base"""


def image_tag(bento: Bento) -> str:
    """Name the image of a Bento: its own name and version, under `convoy/`."""
    return f"convoy/{bento.tag}"


def find_image(tag: str) -> Image | None:
    """Look for an image in the engine's store."""
    found = docker("image", "ls", "--quiet", "--no-trunc", tag)
    return inspect_image(tag) if found else None


def inspect_image(tag: str) -> Image:
    """Describe an image of the engine's store."""
    image_id, size = docker("image", "inspect", "--format", "{{.Id}} {{.Size}}", tag).split()
    return Image(tag=tag, id=image_id, size_bytes=int(size))


def build_image(bento: Bento, platform: str | None = None) -> Image:
    """Build the container image of a Bento, for `platform` or that of the engine; what has not changed is not built.

    Its list of contents is written beside the Bento.

    Raises:
        UserError: the target does not run on that platform, Docker does not answer, or the build failed: a package
            cannot be had, or the endpoint did not answer inside.

    """
    supported = TARGETS[bento.target].platforms
    if platform and platform not in supported:
        raise UserError(f"--platform {platform}: {bento.target} is built for {' or '.join(supported)}")
    tag = image_tag(bento)
    with tempfile.TemporaryDirectory(prefix="convoy-image-") as name:
        context = Path(name)
        for path in (LOCK, *(FOLDER.parent / script for script in SCRIPTS)):
            shutil.copyfile(path, context / path.name)
        arguments = [*_arguments(bento, tag, platform), str(context)]
        _log.info("image: building %s", tag)
        docker("build", "--tag", tag, *arguments)
        docker("build", "--target", "sbom", "--output", str(context / "out"), *arguments)
        shutil.copyfile(context / "out" / SBOM_FILE, bento.path / SBOM_FILE)
    return inspect_image(tag)


def labels(bento: Bento) -> dict[str, str]:
    """Say where the image comes from."""
    base = "org.opencontainers.image"
    known = {
        f"{base}.title": f"{bento.model_name} v{bento.model_version} for {bento.target}",
        f"{base}.version": bento.model_version,
        f"{base}.revision": bento.git_commit,
        f"{base}.created": bento.created.isoformat(timespec="seconds"),
        f"{base}.base.name": TARGETS[bento.target].base_image,
        "convoy.bento": bento.tag,
        "convoy.target": bento.target,
        "convoy.precision": bento.precision,
        "convoy.model_name": bento.model_name,
        "convoy.model_version": bento.model_version,
        "convoy.run_id": bento.run_id,
        "convoy.data_version": bento.data_version,
        "convoy.git_commit": bento.git_commit,
        "convoy.sbom": SBOM_PATH,
    }
    return {name: value for name, value in known.items() if value is not None}


def _arguments(bento: Bento, tag: str, platform: str | None) -> Iterator[str]:
    yield from ("--file", str(DOCKERFILE), "--build-context", f"bento={bento.path}")
    yield from ("--build-arg", f"BASE={TARGETS[bento.target].base_image}", "--build-arg", f"TITLE={tag}")
    for name, value in labels(bento).items():
        yield from ("--label", f"{name}={value}")
    if index := next((name for name in INDEXES if os.environ.get(name)), None):
        yield from ("--secret", f"id=index,env={index}")
    if platform:
        yield from ("--platform", platform)
    yield "--progress=plain"
