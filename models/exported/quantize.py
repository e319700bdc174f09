"""Static int8 quantization: per channel, calibrated on training images, kept only if it is faster and accurate enough.

The decision is measured for each model: AlexNet becomes three times as fast, LeNet slower, and EfficientNet-B0 may lose
half of its accuracy. Int8 and fp32 give different answers, so the decision must not depend on the load of the machine.
Therefore the CPU time of one thread is compared.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

# Set before the import: see `models.exported.session.open_session`.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from core.files import file_sha256
from data.batches.shards import PreparedImages, center_crop
from data.images.decode import Pixels
from data.manifest import read_data_manifest
from data.splits import Split
from models.exported.manifest import INT8_FILE, MODEL_FILE, Int8, Precision
from models.exported.session import Predict, open_session, run_session
from models.exported.timing import time_alternately
from models.judging.evaluate import predict

NUM_CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 16
OPERATORS = ["Conv", "Gemm", "MatMul", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Mul"]
"""Quantized operators. Softmax is not quantized, because probabilities need finer steps than 1/256."""
NORMALIZATION = "/normalize/"
"""Prefix of the nodes that normalize pixels. They are not quantized either: onnxruntime would take 50 times as long for
one factor and one summand per channel, longer than for all convolutions of AlexNet."""
MEASURED: tuple[Split, ...] = ("val", "test")
MIN_SPEEDUP = 1.2
"""Below this, the gain is not worth different answers. On two cores with a load of 14, each of six networks was at most
0.49 (LeNet) or at least 1.28 (MobileNetV2) times as fast in int8 in every run: no network came near the limit."""

Medians = dict[Precision, dict[int, float]]

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class Calibrated:
    """Images for quantization: the prepared images, and the side of the network's crop in pixels."""

    prepared: Path
    crop: int

    def images(self, split: Split) -> PreparedImages:
        """Open a split."""
        return PreparedImages(self.prepared, read_data_manifest(self.prepared), split)


class TrainingImages(CalibrationDataReader):  # type: ignore[misc]
    """Training images, spread evenly over the split, for onnxruntime's calibration: one batch per call."""

    def __init__(self, images: PreparedImages, crop: int) -> None:
        """Choose the images."""
        count = min(len(images), NUM_CALIBRATION_IMAGES)
        chosen = np.linspace(0, len(images) - 1, count).round().astype(np.int64)
        self._images, self._crop = images, crop
        self._batches = iter(np.array_split(chosen, -(-count // CALIBRATION_BATCH)))

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next batch, uint8 [N, crop, crop, 3], or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": center_crop(self._images.gather(batch), self._crop)}


def quantize(fp32: Path, int8: Path, data: Calibrated) -> None:
    """Quantize the model `fp32` to `int8`: 8-bit weights (a scale per channel) and activations (a scale per tensor)."""
    with tempfile.TemporaryDirectory(dir=int8.parent) as folder:
        # Folds batch normalization into the convolutions, because they must be quantized together.
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
        written = Path(folder, "int8.onnx")
        quantize_static(
            prepared,
            written,
            TrainingImages(data.images("train"), data.crop),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            nodes_to_exclude=_normalizing(prepared),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        _copy_notes(fp32, written)
        written.replace(int8)


def _copy_notes(source: Path, target: Path) -> None:
    """Copy the metadata of `source` to `target`."""
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {note.key: note.value for note in onnx.load(source).metadata_props})
    onnx.save(model, target)


def _normalizing(model: Path) -> list[str]:
    return [node.name for node in onnx.load(model).graph.node if node.name.startswith(NORMALIZATION)]


def try_int8(
    folder: Path,
    data: Calibrated,
    golden_image: Pixels,
    max_accuracy_drop: float,
    measure_seconds: Callable[[Mapping[Precision, Predict], int], Medians] = time_alternately,
) -> Int8:
    """Quantize the model in `folder`, and keep the result if it is accurate enough and faster.

    Args:
        folder: folder of the exported model. `model.int8.onnx` stays there only if it is accepted.
        data: images for calibration (training) and measurement (validation and test).
        golden_image: uint8 [crop, crop, 3].
        max_accuracy_drop: allowed loss of accuracy on the validation and test images, between 0 and 1.
        measure_seconds: times the two models, each on one core.

    """
    files: dict[Precision, Path] = {"fp32": folder / MODEL_FILE, "int8": folder / INT8_FILE}
    quantize(files["fp32"], files["int8"], data)
    models = {precision: _open(path) for precision, path in files.items()}
    drops = {split: _accuracy_drop(models, data, split) for split in MEASURED}
    seconds = measure_seconds({precision: _open(path, num_threads=1) for precision, path in files.items()}, data.crop)
    (golden,) = models["int8"](golden_image[None])
    tried = Int8(
        refusal=_refusal(drops, seconds, max_accuracy_drop),
        accuracy_drop=drops,
        seconds=seconds,
        num_bytes={precision: path.stat().st_size for precision, path in files.items()},
        onnx_sha256=file_sha256(files["int8"]),
        golden=tuple(float(value) for value in golden),
    )
    _log.info("int8: %s", f"refused, {tried.refusal}" if tried.refusal else "accepted")
    if tried.refusal:
        files["int8"].unlink()
    return tried


def metrics_of(tried: Int8) -> dict[str, float]:
    """Return the measurements as metrics of a run.

    MLflow sorts the charts of a run by the part of the name before the slash. `variants` comes after `train` and `val`,
    whose charts are the learning curves.
    """
    return (
        {f"variants/int8_{split}_accuracy_drop": drop for split, drop in tried.accuracy_drop.items()}
        | {
            f"variants/{precision}_seconds_batch_{size}": value
            for precision, by_size in tried.seconds.items()
            for size, value in by_size.items()
        }
        | {f"variants/{precision}_bytes": float(value) for precision, value in tried.num_bytes.items()}
    )


def _open(path: Path, num_threads: int = 0) -> Predict:
    session = open_session(path, num_threads)
    return lambda images: run_session(session, images)


def _accuracy_drop(models: Mapping[Precision, Predict], data: Calibrated, split: Split) -> float:
    images, classes = data.images(split), read_data_manifest(data.prepared).classes
    accuracy = {name: predict(model, images, classes, data.crop).summarize().accuracy for name, model in models.items()}
    return accuracy["fp32"] - accuracy["int8"]


def _refusal(drops: Mapping[Split, float], seconds: Medians, max_accuracy_drop: float) -> str | None:
    split, drop = max(drops.items(), key=lambda item: item[1])
    if drop > max_accuracy_drop:
        return f"it loses {drop:.4f} of its {split} accuracy, allowed {max_accuracy_drop:g}"
    for size, fp32 in seconds["fp32"].items():
        speedup = fp32 / seconds["int8"][size]
        if speedup < MIN_SPEEDUP:
            return f"it is only {speedup:.2f} times as fast as fp32 at batch {size}"
    return None
