"""A model as C code: a function that resizes and crops an image, and one that classifies. Neither allocates memory."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from core.errors import UserError
from data.images.decode import Pixels
from models.exported.manifest import INT8_FILE, MODEL_FILE, ModelManifest
from models.exported.predictor import read_model_manifest
from models.exported.session import Probabilities

HEADER, NETWORK, PREPROCESS = "classifier.h", "classifier.c", "preprocess.c"
MAX_MODEL_MB = 8
"""Largest ONNX file that becomes C: the weights are written as text, four times as long."""
MAX_STACK_MB = 256
"""Code that needs more stack is not run for the report."""
FLAGS = ("-std=c99", "-O2", "-shared", "-fPIC", "-fstack-usage")


def write_c(model: Path, folder: Path) -> tuple[str, ...]:
    """Write the exported model in `model`, in int8 where that was accepted, as C into `folder`; gives the files.

    Raises:
        UserError: the network is too large, or has an operator that cannot be written.

    """
    manifest = read_model_manifest(model)
    source = model / (INT8_FILE if INT8_FILE in manifest.files else MODEL_FILE)
    if (found := source.stat().st_size / 1e6) > MAX_MODEL_MB:
        raise UserError(
            f"c: {source.name} has {found:.1f} MB, and C is for networks of at most {MAX_MODEL_MB}: "
            "train a smaller one, such as model.network=lenet5"
        )
    command = [sys.executable, "-m", "emx_onnx_cgen", "compile", str(source), str(folder / NETWORK)]
    # 0: everything in one file, and nothing on the heap.
    command += ["--input-dim", "image:0=1", "--model-name", "classifier"]
    command += ["--large-temp-threshold", "0", "--large-weight-threshold", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"c: {manifest.network} cannot be written as C: {_last_line(done.stderr or done.stdout)}")
    (folder / HEADER).write_text(_header(manifest), encoding="ascii")
    shutil.copy(Path(__file__).with_name("c") / PREPROCESS, folder / PREPROCESS)
    return HEADER, NETWORK, PREPROCESS


def _last_line(output: str) -> str:
    return (output.strip().splitlines() or ["no reason given"])[-1]


def _header(manifest: ModelManifest) -> str:
    spec, names = manifest.preprocessing, ", ".join(map(_text, manifest.classes))
    lines = [
        f"/* {manifest.name} version {manifest.version}, run {manifest.run_id}, preprocessing {spec.hash}. */",
        "#ifndef CLASSIFIER_H",
        "#define CLASSIFIER_H",
        "#include <stdint.h>",
        "",
        f"#define CLASSIFIER_SIZE {spec.size}",
        f"#define CLASSIFIER_CROP {spec.crop}",
        f"#define CLASSIFIER_NUM_CLASSES {len(manifest.classes)}",
        f"#define CLASSIFIER_CLASSES {{{names}}}",
    ]
    if certainty := manifest.certainty:
        lines += [
            "/* An answer is uncertain below this probability, or above this entropy in nats. */",
            f"#define CLASSIFIER_MIN_PROBABILITY {certainty.threshold!r}f",
            f"#define CLASSIFIER_MAX_ENTROPY {certainty.max_entropy!r}f",
        ]
    image = "image[1][CLASSIFIER_CROP][CLASSIFIER_CROP][3]"
    return "\n".join(
        [
            *lines,
            "",
            "/* Resize and crop an upright image: rgb has height x width pixels of 3 bytes. */",
            f"void classifier_preprocess(const uint8_t *rgb, int height, int width, uint8_t {image});",
            "",
            "/* Classify a cropped image. Pixels are normalized inside. */",
            f"void classifier(uint8_t {image}, float probabilities[1][CLASSIFIER_NUM_CLASSES]);",
            "",
            "#endif",
            "",
        ]
    )


def _text(name: str) -> str:
    """Write a string literal of C, in ASCII."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}" for byte in name.encode())
    return f'"{"".join(plain)}"'


class CPredictor:
    """C code that was compiled here, with the calling convention of `OnnxPredictor`."""

    def __init__(self, folder: Path) -> None:
        """Compile the C code in `folder`.

        Raises:
            UserError: there is no C compiler, it refuses the code, or the function needs too much stack.

        """
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            raise UserError("no C compiler is installed: the C code was not tried")
        with tempfile.TemporaryDirectory() as name:
            library = Path(name) / "classifier.so"
            sources = [str(folder / name) for name in (NETWORK, PREPROCESS)]
            command = [compiler, *FLAGS, "-o", str(library), *sources, "-lm"]
            done = subprocess.run(command, cwd=name, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(f"c: {compiler} refuses the code: {_last_line(done.stderr)}")
            self.stack_bytes = sum(_frames(path) for path in Path(name).glob("*classifier.su"))
            self._library = ctypes.CDLL(str(library))
        if self.stack_bytes > MAX_STACK_MB * 2**20:
            raise UserError(
                f"c: the network needs {self.stack_bytes / 2**20:,.0f} MiB of stack, at most {MAX_STACK_MB}"
            )
        self._num_classes = len(read_model_manifest(folder).classes)

    def __call__(self, images: Pixels) -> Probabilities:
        """Classify images, uint8 [N, crop, crop, 3], into probabilities, float32 [N, num_classes]."""
        images = np.ascontiguousarray(images)
        found = np.empty((len(images), self._num_classes), dtype=np.float32)

        def classify() -> None:
            for image, row in zip(images, found, strict=True):
                self._library.classifier(ctypes.c_void_p(image.ctypes.data), ctypes.c_void_p(row.ctypes.data))

        _on_large_stack(classify, self.stack_bytes)
        return found

    def preprocess(self, image: Pixels, crop: int) -> Pixels:
        """Resize and crop an image, uint8 [height, width, 3], to [crop, crop, 3]."""
        image = np.ascontiguousarray(image)
        found = np.empty((crop, crop, 3), dtype=np.uint8)
        address, height, width = ctypes.c_void_p(image.ctypes.data), *image.shape[:2]
        self._library.classifier_preprocess(address, height, width, ctypes.c_void_p(found.ctypes.data))
        return found


def _frames(stack_usage: Path) -> int:
    """Give the bytes of stack of the outer function and of the largest one that the outer function calls."""
    lines = [line.split("\t") for line in stack_usage.read_text().splitlines()]
    sizes = {line[0].rpartition(":")[2]: int(line[1]) for line in lines}
    return sizes.pop("classifier", 0) + max(sizes.values(), default=0)


def _on_large_stack(work: Callable[[], None], num_bytes: int) -> None:
    """Run `work` in a thread whose stack has room for a frame of `num_bytes`."""
    before = threading.stack_size((num_bytes // 2**20 + 2) * 2**20)
    try:
        thread = threading.Thread(target=work)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
