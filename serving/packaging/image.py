import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from core.errors import UserError
from serving.packaging.bento import Bento, read_placement
from serving.rollout.docker import docker

FOLDER = Path(__file__).parent
DOCKERFILE = FOLDER / "image.Dockerfile"
LOCK = FOLDER / "requirements.lock"
"""Link to the clone's lock; a wheel holds a copy."""
SCRIPTS = ("packaging/slim.py", "packaging/bytecode.py", "packaging/sbom.py", "endpoint/healthcheck.py")
SBOM_FILE = "sbom.cdx.json"
"""The image's bill of materials, written beside the Bento."""
SBOM_PATH = f"/opt/convoy/{SBOM_FILE}"
"""Path of the bill of materials inside the image."""
INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
"""Environment variables that name a package index. The first one that is set counts."""

_log = logging.getLogger("convoy")


class Image(BaseModel):
    """Container image of a Bento, in the Docker engine."""

    model_config = ConfigDict(frozen=True)

    tag: str
    id: str
    size_bytes: int
    """uncompressed, with the base image"""


def image_tag(bento: Bento) -> str:
    """Return the tag of a Bento's image: `convoy/` and the Bento's tag."""
    return f"convoy/{bento.tag}"


def find_image(tag: str) -> Image | None:
    """Return an image of the Docker engine, or None if it does not exist."""
    found = docker("image", "ls", "--quiet", "--no-trunc", tag)
    return inspect_image(tag) if found else None


def inspect_image(tag: str) -> Image:
    """Read an image of the Docker engine."""
    image_id, size = docker("image", "inspect", "--format", "{{.Id}} {{.Size}}", tag).split()
    return Image(tag=tag, id=image_id, size_bytes=int(size))


def build_image(bento: Bento, platform: str | None = None) -> Image:
    """Build the container image of a Bento for `platform`, by default the Docker engine's. Unchanged layers are reused.

    The bill of materials is written beside the Bento.

    Raises:
        UserError: the target does not run on that platform, Docker does not answer, or the build failed: a package
            is not available, or the endpoint did not answer in the image.

    """
    supported = read_placement(bento).target.platforms
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
    """Return the labels that tell the lineage of the image."""
    base = "org.opencontainers.image"
    known = {
        f"{base}.title": f"{bento.model_name} v{bento.model_version} for {bento.target}",
        f"{base}.version": bento.model_version,
        f"{base}.revision": bento.git_commit,
        f"{base}.created": bento.created.isoformat(timespec="seconds"),
        f"{base}.base.name": read_placement(bento).target.base_image,
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
    yield from ("--build-arg", f"BASE={read_placement(bento).target.base_image}", "--build-arg", f"TITLE={tag}")
    for name, value in labels(bento).items():
        yield from ("--label", f"{name}={value}")
    if index := next((name for name in INDEXES if os.environ.get(name)), None):
        yield from ("--secret", f"id=index,env={index}")
    if platform:
        yield from ("--platform", platform)
    yield "--progress=plain"
