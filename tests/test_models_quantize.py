import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import tiny_job
from onnx import numpy_helper

from core.files import file_sha256
from data.batches.shards import PreparedImages, center_crop
from models.exported.export import ServedNetwork, export_onnx
from models.exported.quantize import (
    NORMALIZATION,
    Calibrated,
    Medians,
    TrainingImages,
    metrics_of,
    quantize,
    try_int8,
)
from models.exported.session import open_session, run_session
from models.exported.timing import time_alternately
from models.training.job import BEST
from models.training.train import load_classifier, train

CROP = 20
FASTER: Medians = {"fp32": {1: 0.02, 8: 0.08}, "int8": {1: 0.01, 8: 0.02}}


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported network that knows its classes."""
    folder = tmp_path_factory.mktemp("trained")
    job = tiny_job(prepared, "alexnet", max_epochs=4)
    train(job, folder / "checkpoints", [])
    return export_onnx(ServedNetwork(load_classifier(job, folder / "checkpoints" / BEST)), CROP, folder / "exported")


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(trained.read_bytes())
    return tmp_path


@pytest.fixture
def data(prepared: Path) -> Calibrated:
    return Calibrated(prepared, CROP)


def golden(data: Calibrated) -> Any:
    return center_crop(data.images("test").gather(np.array([0])), CROP)[0]


def test_int8_answers_as_fp32_in_a_quarter_of_the_space(folder, data):
    tried = try_int8(folder, data, golden(data), 0.05, lambda models, crop: FASTER)
    assert tried.refusal is None
    assert tried.onnx_sha256 == file_sha256(folder / "model.int8.onnx")
    assert tried.num_bytes["int8"] < 0.3 * tried.num_bytes["fp32"]
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.int8.onnx"}
    test = data.images("test")
    images = center_crop(test.gather(np.arange(len(test))), CROP)
    fp32, int8 = (run_session(open_session(folder / name), images) for name in ("model.onnx", "model.int8.onnx"))
    assert (fp32.argmax(axis=1) == test.labels).mean() > 0.9  # it was worth comparing
    assert np.abs(int8 - fp32).mean() < 0.05
    np.testing.assert_allclose(int8.sum(axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(tried.golden, int8[0], atol=1e-5)


@pytest.mark.parametrize("file", ["model.onnx", "model.int8.onnx"])
def test_pixels_are_normalized_as_planes_of_floats(folder, data, file, tmp_path):
    """As onnxruntime computes it in the end: integers, or colours as the last axis, take it many times as long."""
    quantize(folder / "model.onnx", folder / "model.int8.onnx", data)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # that this file is for this machine is known
    onnxruntime.InferenceSession(folder / file, options)
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    steps = [node for node in graph.node if node.name.startswith(NORMALIZATION)]
    assert [node.op_type for node in steps][:5] == ["Transpose", "Reshape", "Cast", "Mul", "Add"]
    reshaped = next(node for node in steps if node.op_type == "Reshape")
    shape = next(numpy_helper.to_array(each) for each in graph.initializer if each.name == reshaped.input[1])
    # 0: the axis of the batch keeps its name, without which onnxruntime adds layers less well.
    assert shape.tolist() == [0, 3, CROP * CROP]


def test_the_figures_go_to_the_run(folder, data):
    tried = try_int8(folder, data, golden(data), 0.05, lambda models, crop: FASTER)
    metrics = metrics_of(tried)
    assert metrics["variants/int8_seconds_batch_8"] == 0.02
    assert metrics["variants/fp32_bytes"] == (folder / "model.onnx").stat().st_size
    assert {"variants/int8_val_accuracy_drop", "variants/int8_test_accuracy_drop"} < metrics.keys()


@pytest.mark.parametrize(
    ("budget", "seconds", "reason"),
    [
        pytest.param(-1.0, FASTER, "it loses .* accuracy, allowed -1", id="less accurate than allowed"),
        pytest.param(
            1.0,
            {"fp32": {1: 0.01, 8: 0.08}, "int8": {1: 0.01, 8: 0.02}},
            "only 1.00 times as fast as fp32 at batch 1",
            id="not faster",
        ),
        pytest.param(
            1.0,
            {"fp32": {1: 0.02, 8: 0.02}, "int8": {1: 0.01, 8: 0.04}},
            "only 0.50 times as fast as fp32 at batch 8",
            id="slower in batches",
        ),
    ],
)
def test_what_does_not_pay_is_refused_and_its_file_removed(folder, data, budget, seconds, reason):
    tried = try_int8(folder, data, golden(data), budget, lambda models, crop: seconds)
    assert tried.refusal is not None
    assert re.search(reason, tried.refusal)
    assert {path.name for path in folder.iterdir()} == {"model.onnx"}
    assert tried.accuracy_drop.keys() == {"val", "test"}


def test_models_are_timed_in_turns():
    calls: list[tuple[str, int]] = []
    models = {name: lambda images, name=name: calls.append((name, len(images))) for name in ("fp32", "int8")}
    medians = time_alternately(models, 8)  # type: ignore[arg-type]
    assert calls[:4] == [("fp32", 1), ("int8", 1)] * 2
    assert calls[-2:] == [("fp32", 8), ("int8", 8)]
    assert {name: list(sizes) for name, sizes in medians.items()} == {"fp32": [1, 8], "int8": [1, 8]}


def test_what_a_busy_machine_makes_a_model_wait_for_does_not_count():
    def spin(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    def waits(images: Any) -> None:
        spin(0.001)
        time.sleep(0.02)

    medians = time_alternately({"fp32": lambda images: spin(0.004), "int8": waits}, 8)  # type: ignore[arg-type,return-value]
    assert [medians["fp32"][size] > 2 * medians["int8"][size] for size in (1, 8)] == [True, True]


def test_calibration_sees_training_images_once(prepared, data):
    images: PreparedImages = data.images("train")
    reader = TrainingImages(images, CROP)
    batches = []
    while (batch := reader.get_next()) is not None:
        batches.append(batch["image"])
    seen = np.concatenate(batches)
    np.testing.assert_array_equal(seen, center_crop(images.gather(np.arange(len(images))), CROP))
