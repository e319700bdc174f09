"""Base of all sources of labelled images. A source lists its images in a fixed order, and has a cheap fingerprint."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from data.splits import Split


@dataclass(frozen=True)
class Rejected:
    """Image that cannot be used, and the reason."""

    path: str
    reason: str


class SourceImage(NamedTuple):
    """Labelled image: the path of its file, a function that reads it, or its bytes."""

    origin: str
    label: str
    split: Split | None
    content: str | Callable[[], bytes] | bytes
    """a string is the path of a file; creating a `Path` would double the time of listing"""
    num_bytes: int
    """exact for files, otherwise an estimate, for grouping images into shards"""
    state: str
    """changes whenever the content may have changed"""

    @classmethod
    def of_file(cls, origin: str, label: str, path: Path, split: Split | None = None) -> "SourceImage":
        """Describe an image file, to be read later. Its size and times tell whether it has changed."""
        status = path.stat()
        state = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        return cls(origin, label, split, str(path), status.st_size, state)

    @classmethod
    def of_bytes(cls, origin: str, label: str, content: bytes, split: Split | None = None) -> "SourceImage":
        """Describe an image by the bytes of its file."""
        return cls(origin, label, split, content, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Listing:
    """All images of a source, ordered by origin, and the rejected images."""

    images: list[SourceImage]
    rejected: list[Rejected] = field(default_factory=list)


class Source(Protocol):
    """Source of labelled images."""

    def fingerprint(self) -> str:
        """Digest of the source's state, which changes whenever the images may have changed. Reads no image."""
        ...

    def list_images(self) -> Listing:
        """List the images, ordered by origin."""
        ...


def fingerprint_of(listing: Listing) -> str:
    """Digest of a listing, with the states of the images."""
    digest = hashlib.sha256()
    for image in listing.images:
        digest.update(repr((image.origin, image.label, image.split, image.state)).encode())
    for rejected in listing.rejected:
        digest.update(repr((rejected.path, rejected.reason)).encode())
    return digest.hexdigest()[:16]
