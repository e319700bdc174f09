import numpy as np
import pytest
import torch
from conftest import tiny_job

from data.errors import UserError
from data.manifest import read_manifest
from data.shards import PreparedImages
from models.config import GateConfig
from models.evaluate import Evaluation, predict
from models.export import ServedNetwork, TorchPredictor, export_onnx, make_golden, preprocessing_of
from models.gate import Rival, judge, measure_model, measure_rival
from models.manifest import ModelManifest
from models.predictor import OnnxPredictor, file_sha256
from models.registry import write_manifest
from models.train import build_classifier

GATE = GateConfig(min_accuracy=0.5, min_class_accuracy=0.25, max_regression=0.125, max_parity_error=1e-3)
NONE = Rival(None, "there is none")


def evaluation(accuracy, worst=0.5):
    return Evaluation(num_images=10, accuracy=accuracy, top5_accuracy=1, loss=1, class_accuracy={"a": 0.9, "b": worst})


# Eighths, which floating point holds exactly.
@pytest.mark.parametrize(
    ("accuracy", "worst", "parity", "rival", "failed"),
    [
        (0.5, 0.25, 1e-3, NONE, []),
        (0.49, 0.25, 1e-3, NONE, ["test/accuracy"]),
        (0.5, 0.24, 1e-3, NONE, ["worst class"]),
        (0.5, 0.25, 2e-3, NONE, ["ONNX against torch"]),
        (0.75, 0.25, 0, Rival(0.875), []),
        (0.74, 0.25, 0, Rival(0.875), ["against the champion"]),
        (0.1, 0.1, 1, Rival(1.0), ["test/accuracy", "worst class", "ONNX against torch", "against the champion"]),
    ],
)
def test_each_gate_passes_at_its_limit_and_fails_beyond(accuracy, worst, parity, rival, failed):
    verdict = judge(evaluation(accuracy, worst), parity, rival, GATE)
    assert [check.name for check in verdict.checks if not check.passed] == failed
    assert verdict.passed == (not failed)
    assert verdict.failures.count(";") == max(len(failed) - 1, 0)
    assert all(name in verdict.failures for name in failed)


@pytest.mark.parametrize("num_images", [7, 100, 368, 10_000])
def test_losing_exactly_what_may_be_lost_passes_whatever_the_rounding(num_images):
    """A champion with k of n right, a challenger with k - m, and m of n allowed, for all k."""
    lost = max(num_images // 100, 1)
    config = GATE.model_copy(update={"min_accuracy": 0.0, "max_regression": lost / num_images})
    ranks = range(lost, num_images + 1, max(num_images // 500, 1))
    failed = [
        right
        for right in ranks
        if not judge(evaluation((right - lost) / num_images), 0, Rival(right / num_images), config).passed
    ]
    assert failed == []


def test_a_check_says_its_figure_and_its_limit():
    verdict = judge(evaluation(0.49, 0.75), 0.5, Rival(0.75), GATE)
    assert [str(check) for check in verdict.checks] == [
        "test/accuracy 0.49 < 0.5",
        "worst class 0.75 >= 0.25 (class 'b')",
        "ONNX against torch 0.5 > 0.001",
        "against the champion 0.49 < 0.625 (champion 0.75 less 0.125)",
    ]


def test_a_verdict_says_why_nothing_was_compared():
    assert judge(evaluation(1), 0, NONE, GATE).notes == ("not compared with a champion: there is none",)
    assert judge(evaluation(1), 0, Rival(0.5), GATE).notes == ()


def test_a_figure_that_is_no_number_fails():
    verdict = judge(evaluation(float("nan")), float("nan"), Rival(0.5), GATE)
    assert [check.name for check in verdict.checks if check.passed] == ["worst class"]


@pytest.fixture(scope="module")
def network(prepared):
    torch.manual_seed(0)
    return ServedNetwork(build_classifier(tiny_job(prepared)))


@pytest.fixture
def model(prepared, network, tmp_path):
    """An exported model, as the registry gives it."""
    path = export_onnx(network, 20, tmp_path / "model")
    data = read_manifest(prepared)
    preprocessing = preprocessing_of(data, 20)
    manifest = ModelManifest(
        name="classifier",
        version="4",
        network="lenet5",
        classes=data.classes,
        preprocessing=preprocessing,
        preprocessing_hash=preprocessing.hash,
        run_id="run",
        data_version="data",
        git_commit=None,
        metrics={},
        onnx_sha256=file_sha256(path),
        golden=make_golden(np.zeros((20, 20, 3), np.uint8), np.ones(3, np.float32)),
    )
    write_manifest(path.parent, manifest)
    return path.parent


def change(model, **update):
    write_manifest(model, OnnxPredictor(model).manifest.model_copy(update=update))


def test_a_model_is_measured_on_all_test_images(prepared, network, model):
    data = read_manifest(prepared)
    images = PreparedImages(prepared, data, "test")
    expected = predict(TorchPredictor(network), images, data.classes, 20).summarize()
    found = measure_model(model, prepared)
    assert found.num_images == data.num_in("test") > 0
    assert (found.accuracy, found.class_accuracy) == (expected.accuracy, expected.class_accuracy)
    assert measure_rival(model, prepared) == Rival(expected.accuracy)


def test_a_model_of_other_classes_is_not_measured(prepared, model):
    change(model, classes=("cat", "dog", "fox"))
    assert measure_rival(model, prepared) == Rival(None, "v4 knows other classes")
    with pytest.raises(UserError, match="classifier v4 knows other classes"):
        measure_model(model, prepared)


def test_a_model_for_images_of_another_size_is_not_measured(prepared, model):
    spec = OnnxPredictor(model).manifest.preprocessing
    change(model, preprocessing=spec.model_copy(update={"size": 32}))
    with pytest.raises(UserError, match="v4 takes images prepared at 32 px, not 24"):
        measure_model(model, prepared)
    assert measure_rival(model, prepared).accuracy is None


def test_without_a_champion_there_is_nothing_to_measure(prepared):
    assert measure_rival(None, prepared) == NONE
