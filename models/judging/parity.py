"""The formats of one model, held against each other on the same test images."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from pydantic import BaseModel, ConfigDict

from core.errors import UserError
from models.exported.c_code import CPredictor
from models.exported.formats import Format, open_format, require_format, write_format
from models.exported.manifest import ModelManifest
from models.exported.predictor import MANIFEST_FILE, OnnxPredictor
from models.exported.session import Predict, Probabilities
from models.judging.evaluate import Images, predict

PARITY_FILE = "parity.json"
ROUNDS = 15


class FormatParity(BaseModel):
    """One format against the fp32 ONNX model, on the same test images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format
    files: tuple[str, ...]
    num_bytes: int
    max_difference: float
    """largest difference of a probability"""
    agreement: float
    """share of the images with the same likeliest class"""
    accuracy: float
    milliseconds: float
    """median of the processor time for one image, in one thread of this machine"""
    stack_bytes: int | None = None
    """of C code: what the function needs at most; other formats allocate memory"""


def export_formats(model: Path, formats: Sequence[Format], folder: Path, images: Images) -> list[FormatParity]:
    """Write a model in some formats into `folder`, with its manifest and the report `parity.json`.

    Args:
        model: folder of the registered model.
        formats: those to write.
        folder: where to write them; must not hold another model.
        images: test images of the model's crop or larger, to compare the formats on.

    Raises:
        UserError: a format is not to be had of this model, or a folder is in the way.

    """
    for name in formats:
        require_format(model, name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {folder}: this is no empty folder; name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(model / MANIFEST_FILE, folder)
    reference = OnnxPredictor(model, num_threads=1)
    expected = _probabilities(reference, reference.manifest, images)
    found = []
    for name in formats:
        files = write_format(name, model, folder)
        found.append(_compare(name, files, folder, reference.manifest, images, expected))
    report = f"[{', '.join(one.model_dump_json() for one in found)}]\n"
    (folder / PARITY_FILE).write_text(report, encoding="utf-8")
    return found


def _compare(
    name: Format,
    files: tuple[str, ...],
    folder: Path,
    manifest: ModelManifest,
    images: Images,
    expected: Probabilities,
) -> FormatParity:
    predictor = open_format(name, folder)
    probabilities = _probabilities(predictor, manifest, images)
    classes = probabilities.argmax(axis=1)
    return FormatParity(
        format=name,
        files=files,
        num_bytes=sum((folder / file).stat().st_size for file in files),
        max_difference=float(np.abs(probabilities - expected).max()),
        agreement=float((classes == expected.argmax(axis=1)).mean()),
        accuracy=float((classes == images.labels).mean()),
        milliseconds=_milliseconds(predictor, manifest.preprocessing.crop),
        stack_bytes=predictor.stack_bytes if isinstance(predictor, CPredictor) else None,
    )


def _probabilities(predictor: Predict, manifest: ModelManifest, images: Images) -> Probabilities:
    return predict(predictor, images, manifest.classes, manifest.preprocessing.crop).probabilities


def _milliseconds(predictor: Predict, crop: int) -> float:
    image = np.random.default_rng(0).integers(0, 256, (1, crop, crop, 3), dtype=np.uint8)
    predictor(image)
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        predictor(image)
        seconds.append(time.process_time() - started)
    return 1000 * median(seconds)
