"""Appearance and origin of the images of a split, to find out where a model fails."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from core.errors import UserError
from core.machine import num_cores
from data.batches.originals import read_originals
from data.batches.shards import PreparedImages
from data.images.decode import DecodeError, Preprocessing
from data.manifest import DataManifest, read_data_manifest
from data.preparing.stage import INDEX_FILE
from data.quality.traits import decode_and_describe
from data.splits import Split

SLICES_FILE = Path("data/slices.csv")
"""Table by the user, with a column `origin`, as in the data report, and any other columns."""
ORIGIN = "origin"
MAX_VALUES = 50
"""Maximum number of values of a trait. A column with more values, such as a date, is ignored."""
WIDE = 1.25
GREY = 4.0
"""Maximum mean difference between the colours of a grey image, of 255."""
BATCH = 256

Floats = npt.NDArray[np.float64]
Traits = dict[str, list[str]]
"""Value of each image, by the name of the trait; an empty text is no value."""


def traits_of(raw: Path, prepared: Path, split: Split, table: Path = SLICES_FILE) -> Traits:
    """Describe the images of a split, in its order.

    The traits are class, source folder, size, shape and form of the file, brightness, sharpness and colour, and the
    columns of `table`, if it exists. Traits with one value for all images are left out.

    Raises:
        UserError: `raw` does not hold an image that was prepared, or `table` has no column `origin`.

    """
    manifest = read_data_manifest(prepared)
    rows = [row for row in pq.read_table(prepared / INDEX_FILE).to_pylist() if row["split"] == split]
    origins = [row["origin"] for row in rows]
    classes = [row["label"] for row in rows]
    traits = {"class": classes, "folder": _folders(origins, classes)}
    traits |= _of_files(raw, prepared, split, manifest) | _of_pixels(PreparedImages(prepared, manifest, split))
    traits |= _of_user(table, origins) if table.is_file() else {}
    return {name: values for name, values in traits.items() if 1 < len({*values}) <= MAX_VALUES or name == "class"}


def _folders(origins: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the folder of each image, or nothing if the folders are the classes."""
    folders = [str(PurePosixPath(origin).parent) for origin in origins]
    return [] if len({*folders}) == len({*zip(folders, classes, strict=True)}) == len({*classes}) else folders


def _of_files(raw: Path, prepared: Path, split: Split, manifest: DataManifest) -> Traits:
    """Describe the original files, on all cores.

    Raises:
        UserError: an image cannot be decoded, although it was prepared.

    """
    spec = Preprocessing(size=manifest.size, crop=manifest.size, max_pixels=manifest.max_pixels)

    def describe(one: tuple[int, bytes]) -> tuple[int, int, int, str]:
        image = decode_and_describe(one[1], spec)
        return one[0], image.width, image.height, ", ".join(image.traits) or "plain"

    with ThreadPoolExecutor(num_cores()) as threads:
        try:
            found = sorted(threads.map(describe, read_originals(raw, prepared, split)))
        except DecodeError as error:
            raise UserError(f"a {split} image cannot be decoded any more: {error}") from None
    return {
        "size": _quarters(np.array([float(min(width, height)) for _, width, height, _ in found]), ",.0f", " px"),
        "shape": [_shape(width / height) for _, width, height, _ in found],
        "form": [form for *_, form in found],
    }


def _shape(ratio: float) -> str:
    return "upright" if ratio < 1 / WIDE else "wide" if ratio > WIDE else "about square"


def _of_pixels(images: PreparedImages) -> Traits:
    """Describe the prepared images: mean brightness, variance of the Laplacian (Pech-Pacheco 2000), colour."""
    measured = [_measure(images.gather(batch)) for batch in _batches(len(images))]
    brightness, sharpness, color = np.concatenate(measured, axis=1)
    return {
        "brightness": _quarters(brightness, ".0f", " of 255"),
        "sharpness": _quarters(sharpness, ".3g"),
        "colour": ["grey" if one <= GREY else "coloured" for one in color],
    }


def _batches(count: int) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, count, BATCH):
        yield np.arange(start, min(start + BATCH, count))


def _measure(images: npt.NDArray[np.uint8]) -> Floats:
    grey = images.mean(axis=3, dtype=np.float32)
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    laplacian = 4 * grey[:, 1:-1, 1:-1] - around
    spread = images.max(axis=3).astype(np.float32) - images.min(axis=3)
    return np.stack([grey.mean(axis=(1, 2)), laplacian.var(axis=(1, 2)), spread.mean(axis=(1, 2))]).astype(np.float64)


def _quarters(values: Floats, form: str, unit: str = "") -> list[str]:
    """Name the quarter of each value by its bounds. Equal values are in the same quarter."""
    bounds = np.unique(np.quantile(values, [0.25, 0.5, 0.75], method="lower"))
    edges = [float(values.min()), *(float(bound) for bound in bounds), float(values.max())]
    numbers = np.searchsorted(bounds, values, side="left")
    names = [f"{low:{form}} to {high:{form}}{unit}" for low, high in pairwise(edges)]
    return [names[number] for number in numbers]


def _of_user(table: Path, origins: Sequence[str]) -> Traits:
    """Read the columns of the user's table. An image without a row has no value.

    Raises:
        UserError: the table is no CSV in UTF-8 with a column `origin`, or names an image twice.

    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no CSV in UTF-8: {error}") from None
    columns = [name for name in (rows[0] if rows else {}) if name and name != ORIGIN]
    if rows and (ORIGIN not in rows[0] or not columns):
        raise UserError(f"{table}: expected a column `{ORIGIN}` and others, found {', '.join(map(repr, rows[0]))}")
    twice = [name for name, count in Counter(row[ORIGIN] for row in rows).items() if count > 1]
    if twice:
        raise UserError(f"{table} names {twice[0]!r} more than once: keep one line for each image")
    by_origin: Mapping[str, Mapping[str, str]] = {row[ORIGIN]: row for row in rows}
    return {name: [by_origin.get(origin, {}).get(name) or "" for origin in origins] for name in columns}
