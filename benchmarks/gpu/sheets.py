"""CIFAR-10 (Krizhevsky 2009) from sheets: lossless pictures of 1,000 images each, in cells of 32 x 32, row by row."""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from core.errors import UserError
from data.images.decode import Pixels

SIDE, COLUMNS, ROWS = 32, 40, 25
LABELS_FILE = "labels.csv"

Split = tuple[Pixels, npt.NDArray[np.int64]]


def read_sheets(folder: Path, split: str, limit: int | None = None) -> Split:
    """Read a split, or its first `limit` images: uint8 [N, 32, 32, 3], and labels, int64 [N].

    Raises:
        UserError: a file is missing, damaged or of another form.

    """
    try:
        with (folder / LABELS_FILE).open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        places = [(int(row["sheet"]), int(row["cell"])) for row in rows[:limit]]
        labels = np.array([int(row["label"]) for row in rows[:limit]], dtype=np.int64)
        sheets = {sheet: _read_sheet(folder / f"{split}_{sheet:02d}.webp") for sheet in sorted({p[0] for p in places})}
        images = np.stack([sheets[sheet][cell] for sheet, cell in places])
    except (OSError, ValueError, LookupError, TypeError, UnidentifiedImageError) as error:
        raise UserError(
            f"{folder} does not hold CIFAR-10's {split} images as sheets ({type(error).__name__}: {error}): give "
            f"--cifar10 a folder with {LABELS_FILE} and {split}_00.webp, ..."
        ) from None
    return images, labels


def _read_sheet(path: Path) -> Pixels:
    """Cut a sheet into its cells, uint8 [1000, 32, 32, 3]."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    cells = pixels.reshape(ROWS, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2)
    return cells.reshape(ROWS * COLUMNS, SIDE, SIDE, 3)
