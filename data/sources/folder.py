"""Source `folder`: one folder per class."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from core.errors import UserError
from data.sources.base import Listing, Rejected, SourceImage, fingerprint_of
from data.splits import Split

SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


LAYOUT = "expected <class>/*.jpg or train|val|test/<class>/*.jpg"


NO_CLASS = "not in a class folder"


class FolderSource:
    """`<class>/**/image` or `train|val|test/<class>/**/image`. Names that begin with a dot are ignored."""

    def __init__(self, root: Path) -> None:
        """Use the folder `root`.

        Raises:
            UserError: `root` is missing, unreadable or no folder.

        """
        self._shown = f"data.path: {str(root)!r}"
        try:
            is_folder = stat.S_ISDIR(root.stat().st_mode)
        except FileNotFoundError:
            raise UserError(f"{self._shown} does not exist: {LAYOUT} in it") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self._shown} cannot be read ({_reason(error)}): {LAYOUT} in it") from None
        if not is_folder:
            raise UserError(f"{self._shown} is not a folder: {LAYOUT} in it")
        self.root = root
        self._place = _printable(str(root.resolve()))

    def fingerprint(self) -> str:
        """Digest of all names, sizes and times. Takes some 10 microseconds per file.

        Raises:
            UserError: as `list_images`.

        """
        return fingerprint_of(self.list_images())

    def list_images(self) -> Listing:
        """List every file: files below class folders as images, other files as rejected.

        Raises:
            UserError: there are no classes, only one class or no training images, or a folder of class folders cannot
                be read.

        """
        listing = Listing([])
        splits = self._split_folders()
        for parent, split in (splits or {self.root: None}).items():
            for path in self._entries(parent):
                if _is_folder(path):
                    self._list_class(path, split, listing)
                else:
                    listing.rejected.append(Rejected(self._origin(path), NO_CLASS))
        if splits:
            self._list_beside(splits, listing)
        listing.images.sort(key=lambda image: image.origin)
        listing.rejected.sort(key=lambda image: image.path)
        self._check(listing.images)
        return listing

    def _split_folders(self) -> dict[Path, Split | None]:
        """Return the split folders if there are two splits with classes in them, or only the folder `train`.

        A class may be named `train`, beside classes such as `plane` and `ship`.
        """
        tops = [path for path in self._entries(self.root) if _is_folder(path)]
        found = {path: SPLIT_FOLDERS.get(path.name.casefold()) for path in tops}
        splits = {path: split for path, split in found.items() if split}
        with_classes = {split for path, split in splits.items() if any(map(_is_folder, self._entries(path)))}
        only_train = with_classes == {"train"} and len(splits) == len(tops)
        return {**splits} if len(with_classes) > 1 or only_train else {}

    def _list_class(self, folder: Path, split: Split | None, listing: Listing) -> None:
        label = _printable(folder.name)
        num_before = len(listing.images) + len(listing.rejected)
        for origin, file in self._walk(folder, listing.rejected):
            try:
                status = file.stat()
            except OSError as error:
                broken = not isinstance(error, PermissionError) and file.is_symlink()
                listing.rejected.append(
                    Rejected(origin, "broken link" if broken else f"cannot be read: {_reason(error)}")
                )
                continue
            if not stat.S_ISREG(status.st_mode):
                listing.rejected.append(Rejected(origin, "not a regular file"))
                continue
            # Tools that edit metadata may restore the modification time. They cannot set the change time.
            state = f"{self._place}/{origin} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
            listing.images.append(SourceImage(origin, label, split, file.path, status.st_size, state))
        if len(listing.images) + len(listing.rejected) == num_before:
            listing.rejected.append(Rejected(self._origin(folder), "class folder without images"))

    def _list_beside(self, splits: dict[Path, Split | None], listing: Listing) -> None:
        """Reject the files beside the split folders, because they have no label."""
        for path in self._entries(self.root):
            if path in splits:
                continue
            below = self._walk(path, listing.rejected) if _is_folder(path) else [(self._origin(path), path)]
            listing.rejected.extend([Rejected(origin, NO_CLASS) for origin, _ in below])

    def _walk(self, top: Path, rejected: list[Rejected]) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield origin and entry of every file below `top`. Folders that cannot be entered are added to `rejected`."""
        folders = [(self._origin(top), str(top))]
        while folders:
            origin, folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    visible = [entry for entry in entries if _is_visible(entry.name)]
            except OSError as error:
                rejected.append(Rejected(origin, f"cannot be read: {_reason(error)}"))
                continue
            for entry in visible:
                name = f"{origin}/{_printable(entry.name)}"
                if not _is_folder(entry):
                    yield name, entry
                elif entry.is_symlink():
                    rejected.append(Rejected(name, "link to a folder, not followed"))
                else:
                    folders.append((name, entry.path))

    def _entries(self, folder: Path) -> list[Path]:
        try:
            return sorted(path for path in folder.iterdir() if _is_visible(path.name))
        except OSError as error:
            raise UserError(
                f"data.path: {str(folder)!r} cannot be read ({_reason(error)}): let this user read it"
            ) from None

    def _origin(self, path: Path) -> str:
        return _printable(path.relative_to(self.root).as_posix())

    def _check(self, images: list[SourceImage]) -> None:
        classes = {image.label for image in images}
        if not classes:
            raise UserError(f"{self._shown} holds no images in class folders: {LAYOUT} in it")
        if len(classes) == 1:
            raise UserError(
                f"{self._shown} holds one class, {classes.pop()!r}: a classifier needs two or more; {LAYOUT}"
            )
        splits = {image.split for image in images}
        if not splits & {None, "train"}:
            raise UserError(f"{self._shown} holds no images in train/<class>: {LAYOUT} in it")


def _is_folder(path: Path | os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _printable(name: str) -> str:
    """Convert a file name, which may consist of any bytes, to text that every file format can store."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
