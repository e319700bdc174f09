"""`convoy predict`: classifies files and folders of images, without an endpoint."""

import csv
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from core.errors import UserError
from core.files import whole_file
from core.machine import num_cores
from data.images.decode import FORMATS, DecodeError, Pixels
from serving.endpoint.classifier import Classifier

BATCH = 32
"""Batch size of predictions."""
AHEAD = 2
"""Number of batches that are decoded during a prediction."""
COLUMNS = ("file", "label", "probability", "uncertain", "error")

Answer = dict[str, Any]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the named files, and for each folder the images below it, selected by suffix and ordered by name.

    Names that begin with a dot are ignored.

    Raises:
        UserError: a folder holds no images.

    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        below = sorted(Path(folder, name) for folder, name in _visible(path) if _is_image(name))
        if not below:
            raise UserError(f"{path} holds no images: name a file, or a folder with {', '.join(FORMATS[:3])} files")
        found += below
    return found


def _visible(root: Path) -> Iterator[tuple[str, str]]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((folder, name) for name in names if not name.startswith("."))


def _is_image(name: str) -> bool:
    return Image.registered_extensions().get(Path(name).suffix.lower()) in FORMATS


def check_table(path: Path) -> None:
    """Check that a table can be written, before slow work begins.

    Raises:
        UserError: the table cannot be written.

    """
    if path.is_dir():
        raise UserError(f"--csv {path}: this is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"--csv {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--csv {path}: this user cannot write in {path.parent}")


def predict_files(model: Path, files: Sequence[Path], top_k: int, *, as_json: bool, table: Path | None = None) -> int:
    """Classify image files. Returns 0, or 1 if a file is no usable image.

    The answers are printed, one line each or as JSON, or written to `table` as CSV.
    """
    answers = _classify(Classifier(model), files, top_k)
    if as_json or table:
        # Printed answers need no progress bar.
        answers = iter(tqdm(answers, total=len(files), unit="image", desc="predict", disable=None))
    if table:
        return _write_table(answers, table)
    if as_json:
        all_answers = list(answers)
        print(json.dumps(all_answers, indent=1, ensure_ascii=False))
        return int(any("error" in answer for answer in all_answers))
    num_failed = 0
    for answer in answers:
        _print(answer)
        num_failed += "error" in answer
    return int(num_failed > 0)


def _classify(classifier: Classifier, files: Sequence[Path], top_k: int) -> Iterator[Answer]:
    """Yield an answer for each file, in order. Threads decode the next batches during a prediction."""
    waiting: deque[list[Future[Pixels]]] = deque()
    num_done = 0
    with ThreadPoolExecutor(num_cores()) as pool:
        for first in range(0, len(files) + AHEAD * BATCH, BATCH):
            waiting.append([pool.submit(_read, classifier, file) for file in files[first : first + BATCH]])
            if len(waiting) > AHEAD:
                batch = waiting.popleft()
                yield from _answer(classifier, files[num_done : num_done + len(batch)], batch, top_k)
                num_done += len(batch)


def _read(classifier: Classifier, file: Path) -> Pixels:
    return classifier.decode(file.read_bytes())


def _answer(
    classifier: Classifier, files: Sequence[Path], batch: Sequence[Future[Pixels]], top_k: int
) -> Iterator[Answer]:
    problems = [_problem(pixels.exception()) for pixels in batch]
    usable = [pixels.result() for pixels, problem in zip(batch, problems, strict=True) if problem is None]
    probabilities = iter(classifier.predict(np.stack(usable)) if usable else ())
    for file, problem in zip(files, problems, strict=True):
        # A file name may consist of any bytes.
        name = os.fsencode(file).decode("utf-8", "backslashreplace")
        if problem is None:
            yield {"file": name, **classifier.answer(next(probabilities), top_k)}
        else:
            yield {"file": name, "error": problem}


def _problem(error: BaseException | None) -> str | None:
    match error:
        case None:
            return None
        case DecodeError():
            return str(error)
        case OSError():
            return str(error.strerror)
    raise error


def _write_table(answers: Iterator[Answer], table: Path) -> int:
    """Write the likeliest class of each image. The file is complete or absent."""
    num_images = num_failed = 0
    with whole_file(table) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        for answer in answers:
            num_images += 1
            num_failed += "error" in answer
            rows.writerow({"file": answer["file"], **_likeliest(answer)})
    unusable = f", {num_failed:,} of them no usable image (column `error`)" if num_failed else ""
    print(f"{num_images:,} images: {table}{unusable}")
    return int(num_failed > 0)


def _likeliest(answer: Answer) -> dict[str, str]:
    if "error" in answer:
        return {"error": answer["error"]}
    first = answer["predictions"][0]
    uncertain = str(answer["uncertain"]).lower()
    return {"label": first["label"], "probability": f"{first['probability']:.6f}", "uncertain": uncertain}


def _print(answer: Answer) -> None:
    # A name may contain line breaks.
    name = answer["file"] if answer["file"].isprintable() else repr(answer["file"])
    if "error" in answer:
        print(f"convoy: {name}: {answer['error']}", file=sys.stderr)
        return
    classes = "  ".join(f"{row['label']} {row['probability']:.3f}" for row in answer["predictions"])
    print(f"{name}: {classes}{'  (uncertain)' if answer['uncertain'] else ''}")
