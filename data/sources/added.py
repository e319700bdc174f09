"""Sources that users write, in a file of their project or in an installed package."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

from core.errors import UserError
from data.config import SOURCES
from data.sources.base import Listing, Source, SourceImage, fingerprint_of
from data.splits import Split


class AddedSource:
    """Source by a user. Everything that it returns is checked. The method `fingerprint` is optional."""

    def __init__(self, name: str, path: Path | None) -> None:
        """Call the class or function `name` with `data.path`.

        Raises:
            UserError: the function is missing, raises, or returns an object without `list_images`.

        """
        self._name = name
        build = SOURCES.load_function(name, "path")
        with SOURCES.explained(name):
            self._source: Source = build(path)
        if not callable(getattr(self._source, "list_images", None)):
            raise UserError(f"{self._shown}, which gave {self._source!r:.80}: expected an object with list_images()")

    @property
    def _shown(self) -> str:
        return f"data.source is {self._name}"

    def fingerprint(self) -> str:
        """Return the source's fingerprint, or else the digest of its listing.

        Raises:
            UserError: the source raises, or does not return text.

        """
        if not hasattr(self._source, "fingerprint"):
            return fingerprint_of(self.list_images())
        with SOURCES.explained(self._name):
            found = self._source.fingerprint()
        SOURCES.require(self._name, found, str)
        return found

    def list_images(self) -> Listing:
        """List the source's images, ordered by origin.

        Raises:
            UserError: the source raises; an entry is no image or listed twice; there are fewer than two classes, or no
                training images.

        """
        with SOURCES.explained(self._name):
            found = self._source.list_images()
        SOURCES.require(self._name, found, Listing)
        for image in found.images:
            self._check(image)
        self._check_together(found.images)
        images = [self._explained(image) for image in sorted(found.images, key=lambda image: image.origin)]
        return Listing(images, sorted(found.rejected, key=lambda image: image.path))

    def _check(self, image: object) -> None:
        SOURCES.require(self._name, image, SourceImage)
        assert isinstance(image, SourceImage)
        texts = {"origin": image.origin, "label": image.label, "state": image.state}
        wrong = [f"{name} {value!r:.80}" for name, value in texts.items() if not (isinstance(value, str) and value)]
        wrong += [] if image.split in (None, *get_args(Split)) else [f"split {image.split!r:.80}"]
        if wrong:
            raise UserError(
                f"{self._shown}, which lists an image with {' and '.join(wrong)}: expected text for origin, label and "
                "state, and train, val, test or None for split"
            )

    def _check_together(self, images: list[SourceImage]) -> None:
        numbers = Counter(image.origin for image in images)
        if twice := [origin for origin, number in numbers.items() if number > 1]:
            raise UserError(f"{self._shown}, which lists {twice[0]!r} more than once: give each image its own origin")
        if (classes := len({image.label for image in images})) < 2:
            raise UserError(f"{self._shown}, which lists images of {classes} classes: a classifier needs two or more")
        if not {image.split for image in images} & {None, "train"}:
            raise UserError(f"{self._shown}, which lists no images for training: give them the split train, or None")

    def _explained(self, image: SourceImage) -> SourceImage:
        """Wrap the function that reads an image: its errors name the user's code. An OSError rejects only the image."""
        content = image.content
        return image if isinstance(content, str | bytes) else image._replace(content=partial(self._read, content))

    def _read(self, content: Callable[[], bytes]) -> bytes:
        with SOURCES.explained(self._name):
            try:
                return content()
            except OSError as error:
                unreadable = error
        raise unreadable
