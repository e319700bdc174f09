"""Formats of `convoy export`: how Convoy writes each format, and how Convoy runs each format to compare it."""

import shutil
from pathlib import Path
from typing import Literal, get_args

from core.errors import UserError
from models.exported.c_code import CPredictor, write_c
from models.exported.manifest import INT8_FILE, MODEL_FILE, PROGRAM_FILE
from models.exported.predictor import Int8Predictor, OnnxPredictor, read_model_manifest
from models.exported.session import Predict

Format = Literal["onnx", "onnx-int8", "torch", "c"]
FORMATS: tuple[Format, ...] = get_args(Format)
FILES: dict[Format, str] = {"onnx": MODEL_FILE, "onnx-int8": INT8_FILE, "torch": PROGRAM_FILE}
"""Formats that a registered model holds already."""


def available_formats(model: Path) -> tuple[Format, ...]:
    """Give the formats that the exported model in `model` can leave in; `c` may still refuse a large network."""
    files = read_model_manifest(model).files
    return tuple(name for name in FORMATS if name not in FILES or FILES[name] in files)


def require_format(model: Path, name: Format) -> None:
    """Check that a model can leave in a format.

    Raises:
        UserError: the model was registered without that format.

    """
    there = available_formats(model)
    if name in there:
        return
    manifest = read_model_manifest(model)
    why = "this model was registered without it"
    if name == "onnx-int8" and manifest.int8 is not None:
        why = f"int8 was refused for this model: {manifest.int8.refusal}"
    raise UserError(f"{name}: {why}; the formats to be had are {', '.join(there)}")


def write_format(name: Format, model: Path, folder: Path) -> tuple[str, ...]:
    """Write a model in one format into `folder`; gives the names of the files.

    Raises:
        UserError: the network cannot be written as C.

    """
    if name == "c":
        return write_c(model, folder)
    shutil.copy(model / FILES[name], folder)
    return (FILES[name],)


def open_format(name: Format, folder: Path) -> Predict:
    """Load what `write_format` wrote, to compute in one thread. The manifest must be in `folder` too.

    Raises:
        UserError: the file was altered, or there is no C compiler for `c`.

    """
    if name == "c":
        return CPredictor(folder)
    if name == "torch":
        from models.exported.torch_program import ProgramPredictor  # here, because torch takes seconds

        return ProgramPredictor(folder, num_threads=1, device="cpu")
    return (OnnxPredictor if name == "onnx" else Int8Predictor)(folder, num_threads=1)
