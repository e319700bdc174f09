"""Source `parquet`: tables of image bytes and labels, in the layout of Hugging Face or of Convoy."""

import errno
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.errors import UserError, one_line
from data.sources.base import Listing, Rejected, SourceImage
from data.sources.folder import SPLIT_FOLDERS
from data.splits import Split

TABLE_LAYOUT = "expected a parquet file, or a folder of them, with columns `image` (bytes) and `label`"
IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
SPLIT_COLUMN = "split"
NUM_KEPT_GROUPS = 4
"""Row groups in memory. Rows are read in order, by one thread per core, so few row groups are in use at a time."""


@dataclass(frozen=True)
class _Columns:
    """Columns of a table that hold images and labels."""

    image: str
    """column of the bytes: `image`, or `image.bytes` in Hugging Face's layout"""
    label: str
    names: list[str] | None
    """class names, if the labels are indices"""
    has_split: bool


class ParquetSource:
    """Parquet file, or folder of parquet files, with one image per row.

    The split is in the column `split`, or in the name of the file or folder: `train-00000-of-00002.parquet`,
    `validation/0000.parquet`. Rows without a label (-1 in Hugging Face's test sets) are listed as rejected.
    """

    def __init__(self, path: Path) -> None:
        """Find the parquet files, without reading them.

        Raises:
            UserError: `path` does not exist or holds no parquet file.

        """
        self._shown = f"data.path: {str(path)!r}"
        if not path.exists():
            raise UserError(f"{self._shown} does not exist: {TABLE_LAYOUT}")
        self._root = path if path.is_dir() else path.parent
        self._files = _tables_in(path) if path.is_dir() else [path]
        if not self._files:
            raise UserError(f"{self._shown} holds no .parquet file: {TABLE_LAYOUT}")
        self._groups = _RowGroups()

    def fingerprint(self) -> str:
        """Digest of the files' names, sizes and times."""
        states = "\n".join(f"{self._origin(file)} {_state(file)}" for file in self._files)
        return hashlib.sha256(states.encode()).hexdigest()[:16]

    def list_images(self) -> Listing:
        """List the rows, ordered by file and row. Reads the labels, but not the images.

        Raises:
            UserError: a file is no parquet file or lacks the columns, or there is only one class or no training image.

        """
        listing = Listing([])
        for file in self._files:
            self._list_table(file, listing)
        listing.images.sort(key=lambda image: image.origin)
        listing.rejected.sort(key=lambda image: image.path)
        self._check(listing.images)
        return listing

    def _list_table(self, path: Path, listing: Listing) -> None:
        state, given = _state(path), split_in_name(path.relative_to(self._root))
        with _readable(path), pq.ParquetFile(path) as file:
            columns = self._columns(path, file.schema_arrow)
            labels = file.read([columns.label])[columns.label].to_pylist()
            splits = file.read([SPLIT_COLUMN])[SPLIT_COLUMN].to_pylist() if columns.has_split else None
            places = list(_places(file.metadata, columns.image))
        for row, (group, index, num_bytes) in enumerate(places):
            origin = f"{self._origin(path)}/{row:08d}"
            try:
                label = _label(labels[row], columns.names)
                split = _split(splits[row]) if splits else given
            except ValueError as error:
                listing.rejected.append(Rejected(origin, str(error)))
                continue
            content = partial(self._groups.cell, path, columns.image, group, index)
            listing.images.append(SourceImage(origin, label, split, content, num_bytes, f"{state} {row}"))

    def _columns(self, path: Path, schema: pa.Schema) -> _Columns:
        features = _hugging_face_features(schema)
        images = [name for name in schema.names if _bytes_column(schema.field(name))]
        labels = [name for name in schema.names if _is_label(schema.field(name).type)]
        image = _first(IMAGE_COLUMNS, images, [name for name in images if _kind(features, name) == "Image"])
        label = _first(LABEL_COLUMNS, labels, [name for name in labels if _kind(features, name) == "ClassLabel"])
        if image is None or label is None:
            found = ", ".join(f"{field.name}: {field.type}" for field in schema)
            raise UserError(f"data.path: {str(path)!r} has the columns {found}: {TABLE_LAYOUT}")
        column = _bytes_column(schema.field(image))
        assert column
        has_split = SPLIT_COLUMN in schema.names and _is_text(schema.field(SPLIT_COLUMN).type)
        return _Columns(column, label, features.get(label, {}).get("names"), has_split)

    def _origin(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _check(self, images: list[SourceImage]) -> None:
        classes = {image.label for image in images}
        if not classes:
            raise UserError(f"{self._shown} holds no labelled row: {TABLE_LAYOUT}")
        if len(classes) == 1:
            raise UserError(f"{self._shown} holds one class, {classes.pop()!r}: a classifier needs two or more")
        if not {image.split for image in images} & {None, "train"}:
            raise UserError(f"{self._shown} holds no training images: name one of the files train-*.parquet")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn an error in reading a table into a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        shown = f"data.path: {str(path)!r}"
        raise UserError(f"{shown} cannot be read as parquet ({one_line(error)}): {TABLE_LAYOUT}") from None


class _RowGroups:
    """Reads the bytes of single rows. Whole row groups are read, and few of them stay in memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int], pa.ChunkedArray] = OrderedDict()
        self._lock = Lock()

    def cell(self, path: Path, column: str, group: int, row: int) -> bytes:
        """Read one image.

        Raises:
            OSError: the row has no image, or the file is damaged.

        """
        with self._lock:
            if (path, group) not in self._kept:
                self._kept[path, group] = _read_group(path, column, group)
                if len(self._kept) > NUM_KEPT_GROUPS:
                    self._kept.popitem(last=False)
            value = self._kept[path, group][row].as_py()
        if value is None:
            raise OSError(errno.ENODATA, "the table holds no bytes for it")
        return bytes(value)


def _read_group(path: Path, column: str, group: int) -> pa.ChunkedArray:
    name, *inner = column.split(".", 1)
    try:
        with pq.ParquetFile(path) as file:
            cells = file.read_row_group(group, columns=[column])[name]
    except pa.ArrowException as error:
        raise OSError(errno.EIO, one_line(error)) from None
    return pc.struct_field(cells, inner) if inner else cells


def split_in_name(path: Path) -> Split | None:
    """Return the split that appears as a word in the file's name, or in the name of the nearest folder."""
    for part in (path.stem, *(parent.name for parent in path.parents)):
        for word in re.split(r"[^a-z]+", part.casefold()):
            if word in SPLIT_FOLDERS:
                return SPLIT_FOLDERS[word]
    return None


def _tables_in(folder: Path) -> list[Path]:
    found = folder.rglob("*.parquet")
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _places(metadata: pq.FileMetaData, column: str) -> Iterator[tuple[int, int, int]]:
    """Yield row group, row in the group, and mean image size of the group, for each row. Reads only metadata."""
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group)
        sizes = [found.column(index) for index in range(found.num_columns)]
        total = sum(chunk.total_uncompressed_size for chunk in sizes if chunk.path_in_schema == column)
        for row in range(found.num_rows):
            yield group, row, max(1, total // found.num_rows)


def _hugging_face_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads((schema.metadata or {})[b"huggingface"])
        features: dict[str, dict[str, Any]] = content["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _kind(features: dict[str, dict[str, Any]], name: str) -> object:
    return features.get(name, {}).get("_type")


def _first(wanted: tuple[str, ...], found: list[str], declared: list[str]) -> str | None:
    """Choose a column: declared columns first, then usual names, then the only column."""
    choice = declared or found
    usual = [name for name in wanted if name in choice]
    return next(iter([*usual, *declared]), found[0] if len(found) == 1 else None)


def _bytes_column(field: pa.Field) -> str | None:
    if _is_bytes(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type):
        index = field.type.get_field_index("bytes")
        if index >= 0 and _is_bytes(field.type.field(index).type):
            return f"{field.name}.bytes"
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_label(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(pa.types.is_integer(kind))


def _label(value: int | str | None, names: list[str] | None) -> str:
    if value is None or value == -1 or value == "":
        raise ValueError("no label")
    if names is None or isinstance(value, str):
        return str(value)
    if not 0 <= value < len(names):
        raise ValueError(f"label {value}, where {len(names)} classes have names")
    return names[value]


def _split(value: str | None) -> Split | None:
    if value is None:
        return None
    if value.casefold() not in SPLIT_FOLDERS:
        raise ValueError(f"split {value!r} is none of {', '.join(SPLIT_FOLDERS)}")
    return SPLIT_FOLDERS[value.casefold()]


def _state(file: Path) -> str:
    status = file.stat()
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
