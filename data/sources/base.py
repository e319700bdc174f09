"""Where labelled images come from. Each source lists its images in a fixed order and names its state cheaply."""

from collections.abc import Callable
from dataclasses import dataclass, field
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
