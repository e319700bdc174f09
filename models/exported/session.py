"""Inference of ONNX files with onnxruntime."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data.images.decode import Pixels

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Probabilities = npt.NDArray[np.float32]
Predict = Callable[[Pixels], Probabilities]
"""A model: images, uint8 [N, crop, crop, 3], to probabilities, float32 [N, num_classes]."""


def open_session(model: Path, num_threads: int = 0) -> "InferenceSession":
    """Load an ONNX file without checks. 0 threads means one thread per core."""
    # From 1.29 on, onnxruntime sends telemetry, unless this variable is set before the import.
    # Imported here, because the images of torch programs have no onnxruntime.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    # Spinning threads are faster, but between predictions they take the cores from decoding.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_session(session: "InferenceSession", images: Pixels) -> Probabilities:
    """Classify images, uint8 [N, crop, crop, 3], into probabilities, float32 [N, num_classes]."""
    (probabilities,) = session.run(["probabilities"], {"image": images})
    return np.asarray(probabilities, dtype=np.float32)
