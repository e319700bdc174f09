"""Where labelled images come from. Each source lists its images in a fixed order and names its state cheaply."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from data.splits import Split


@dataclass(frozen=True)
class Rejected:
    """An image that cannot be used, and why."""

    path: str
    reason: str


class SourceImage(NamedTuple):
    """One labelled image: a file that is yet to be read, what reads it from somewhere else, or its bytes."""

    origin: str
    label: str
    split: Split | None
    content: str | Callable[[], bytes] | bytes
    """a string is the path of a file: a `Path` would take as long to make as all else that is listed"""
    num_bytes: int
    """exact for files; elsewhere near enough to group images into shards"""
    state: str
    """changes whenever the content may have changed"""

    @classmethod
    def of_file(cls, origin: str, label: str, path: Path, split: Split | None = None) -> "SourceImage":
        """Make one of an image file, which is read later; its size and times tell whether it has changed."""
        status = path.stat()
        state = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        return cls(origin, label, split, str(path), status.st_size, state)

    @classmethod
    def of_bytes(cls, origin: str, label: str, content: bytes, split: Split | None = None) -> "SourceImage":
        """Make one of the bytes of an image file."""
        return cls(origin, label, split, content, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Listing:
    """All images of a source, ordered by origin, and what was passed over."""

    images: list[SourceImage]
    rejected: list[Rejected] = field(default_factory=list)


class Source(Protocol):
    """A place that labelled images come from."""

    def fingerprint(self) -> str:
        """Name the state of the source without reading the images: it changes whenever they may have changed."""
        ...

    def list_images(self) -> Listing:
        """List the images, ordered by origin."""
        ...


def fingerprint_of(listing: Listing) -> str:
    """Name all that is listed, and the states of the images."""
    digest = hashlib.sha256()
    for image in listing.images:
        digest.update(repr((image.origin, image.label, image.split, image.state)).encode())
    for rejected in listing.rejected:
        digest.update(repr((rejected.path, rejected.reason)).encode())
    return digest.hexdigest()[:16]
