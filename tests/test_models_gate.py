import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from core.errors import UserError
from core.files import file_sha256
from data.batches.shards import PreparedImages
from data.images.decode import Preprocessing
from data.manifest import read_data_manifest
from models.config import GateConfig
from models.exported.export import make_golden
from models.exported.manifest import ModelManifest
from models.exported.predictor import OnnxPredictor
from models.judging.evaluate import Predictions, predict
from models.judging.gate import Rival, judge_challenger, measure_model, measure_rival
from models.tracking.registry import write_manifest

GATE = GateConfig(min_accuracy=0.5, min_class_accuracy=0.25, max_regression=0.02, max_parity_error=1e-3)
NONE = Rival(None, "there is none")
CLASSES = ("cat", "dog")


def predictions(right, per_class=100):
    """Predictions of which so many of each class are right, the first ones; as sure as they are right."""
    labels = np.repeat(np.arange(len(right)), per_class)
    hit = np.concatenate([np.arange(per_class) < count for count in right])
    predicted = np.where(hit, labels, (labels + 1) % len(right))
    sure = max(hit.mean(), 0.51)
    probabilities = np.where(np.eye(2)[predicted] == 1, sure, 1 - sure).astype(np.float32)
    return Predictions(probabilities, labels, CLASSES)


def failed(verdict):
    return [check.name for check in verdict.checks if not check.passed]


@pytest.mark.parametrize(
    ("right", "parity", "names"),
    [
        ([75, 25], 1e-3, ["better than guessing"]),
        ([90, 25], 1e-3, []),
        ([74, 25], 1e-3, ["test/accuracy", "better than guessing"]),
        ([90, 24], 1e-3, ["worst class"]),
        ([90, 25], 2e-3, ["ONNX against torch"]),
        ([90, 25], float("nan"), ["ONNX against torch"]),
    ],
)
def test_each_gate_passes_at_its_limit_and_fails_beyond(right, parity, names):
    verdict = judge_challenger(predictions(right), parity, NONE, GATE)
    assert failed(verdict) == names
    assert verdict.outcome == ("failed" if names else "passed")
    assert all(name in verdict.failures for name in names)


def test_without_limits_of_ones_own_a_model_must_beat_guessing_and_know_each_class():
    config = GateConfig()
    assert failed(judge_challenger(predictions([100, 1]), 0, NONE, config)) == ["better than guessing"]
    assert failed(judge_challenger(predictions([100, 0]), 0, NONE, config)) == ["better than guessing", "worst class"]
    assert failed(judge_challenger(predictions([80, 60]), 0, NONE, config)) == []
    off = GateConfig(better_than_guessing=False, min_class_accuracy=None, max_calibration_error=1)
    assert failed(judge_challenger(predictions([0, 0]), 0, NONE, off)) == []


def test_guessing_is_right_as_often_as_the_largest_class():
    """95 of 100 test images of one class: 95 % right is no better than guessing, whatever the limit."""
    labels = np.repeat([0, 1], [95, 5])
    guess = Predictions(np.eye(2, dtype=np.float32)[np.zeros(100, dtype=int)], labels, CLASSES)
    (line,) = judge_challenger(guess, 0, NONE, GateConfig(min_class_accuracy=None)).failures.split("; ")[:1]
    assert line.startswith("better than guessing 0.8882 <= 0.95 (lower end")


def test_a_class_of_few_test_images_is_named_and_not_judged():
    few = predictions([9, 0], per_class=9)
    verdict = judge_challenger(few, 0, NONE, GateConfig(better_than_guessing=False))
    assert verdict.outcome == "passed"
    assert verdict.notes[0] == "fewer than 10 test images, not judged by class: 'cat' (9), 'dog' (9)"
    assert failed(judge_challenger(few, 0, NONE, GateConfig(better_than_guessing=False, min_class_images=9))) == [
        "worst class"
    ]


@pytest.mark.parametrize(
    ("champion", "challenger", "verdict", "outcome"),
    [
        ([85, 85], [95, 95], "better", "passed"),
        ([90, 90], [90, 90], "no worse", "passed"),
        ([95, 95], [80, 80], "worse", "failed"),
        ([90, 90], [90, 87], "too few images to tell", "waits"),
        # Measured higher, although not surely no worse.
        ([60, 90], [90, 60], "too few images to tell", "passed"),
    ],
)
def test_a_challenger_against_the_champion(champion, challenger, verdict, outcome):
    found = judge_challenger(predictions(challenger), 0, Rival(predictions(champion)), GATE)
    assert (found.comparison.verdict, found.outcome) == (verdict, outcome)
    assert found.why.endswith(str(found.comparison))
    assert found.figures.keys() >= {"gate/difference_low", "gate/mcnemar_p", "gate/test/accuracy"}


def test_a_model_that_is_surer_than_it_is_right_fails():
    """Of 200 images 70 % right, at 95 % confidence: chance makes an error of a few per cent, and not of 25."""
    honest = predictions([70, 70])
    sure = np.where(honest.probabilities > 0.5, 0.95, 0.05).astype(np.float32)
    boasting = Predictions(sure, honest.labels, CLASSES)
    assert failed(judge_challenger(honest, 0, NONE, GateConfig())) == []
    assert judge_challenger(boasting, 0, NONE, GateConfig()).failures.startswith("calibration error 0.25 > 0.1")
    # Of four images, all of which are right by a little, not much can be said.
    few = Predictions(np.full((4, 2), (0.6, 0.4), dtype=np.float32), np.zeros(4, dtype=np.int64), CLASSES)
    assert failed(judge_challenger(few, 0, NONE, GateConfig(better_than_guessing=False))) == []


def test_who_wants_to_decide_is_always_asked():
    asks = GATE.model_copy(update={"when_unsure": "wait"})
    assert judge_challenger(predictions([90, 60]), 0, Rival(predictions([60, 90])), asks).outcome == "waits"
    assert judge_challenger(predictions([95, 95]), 0, Rival(predictions([85, 85])), asks).outcome == "passed"


def test_a_failed_check_outweighs_that_a_person_should_decide():
    verdict = judge_challenger(predictions([90, 87]), 1, Rival(predictions([90, 90])), GATE)
    assert (verdict.outcome, verdict.failures) == ("failed", "ONNX against torch 1 > 0.001")


def test_what_cannot_be_compared_waits():
    verdict = judge_challenger(
        predictions([90, 90]), 0, Rival(None, "v2 knows other classes", is_incomparable=True), GATE
    )
    assert (verdict.outcome, verdict.failures) == ("waits", "")
    assert verdict.why == "it cannot be compared with the champion: v2 knows other classes"


def test_without_a_champion_the_note_says_so():
    verdict = judge_challenger(predictions([90, 90]), 0, NONE, GATE)
    assert verdict.notes == ("not compared with a champion: there is none",)
    assert verdict.why.startswith("test/accuracy 0.9 >= 0.5; better than guessing ")


def strongest_color(folder, data, size=24, crop=20, version="4", channels=(0, 1, 2)):
    """A model that names the class of the strongest colour: those of `draw_classes` are red, green and blue."""
    folder.mkdir(parents=True)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["samples"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["samples", "axes"], ["means"], keepdims=0),
            helper.make_node("Gather", ["means", "channels"], ["ordered"], axis=1),
            helper.make_node("Mul", ["ordered", "scale"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "strongest-color",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", crop, crop, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("channels", TensorProto.INT64, [3], channels),
            helper.make_tensor("scale", TensorProto.FLOAT, [1], [0.02]),
        ],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    preprocessing = Preprocessing(size=size, crop=crop, max_pixels=1_000_000)
    manifest = ModelManifest(
        name="classifier",
        version=version,
        network="means",
        classes=data.classes,
        preprocessing=preprocessing,
        preprocessing_hash=preprocessing.hash,
        run_id="run",
        data_version="data",
        git_commit=None,
        metrics={},
        onnx_sha256=file_sha256(path),
        golden=make_golden(np.zeros((crop, crop, 3), np.uint8), np.ones(3, np.float32)),
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def data(prepared):
    return read_data_manifest(prepared)


def test_a_model_is_measured_on_all_test_images(prepared, data, tmp_path):
    model = strongest_color(tmp_path / "model", data)
    images = PreparedImages(prepared, data, "test")
    expected = predict(OnnxPredictor(model), images, data.classes, 20)
    found = measure_model(model, prepared.parent / "raw", prepared)
    assert len(found.labels) == data.num_in("test") > 0
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    rival = measure_rival(model, prepared.parent / "raw", prepared)
    np.testing.assert_array_equal(rival.predictions.probabilities, expected.probabilities)


@pytest.mark.parametrize(("size", "crop"), [(16, 16), (48, 40)])
def test_models_of_other_sizes_are_compared_on_the_same_images(prepared, data, tmp_path, size, crop):
    """A bad challenger does not pass because its images have another size than the champion's."""
    champion = strongest_color(tmp_path / "champion", data, size, crop)
    challenger = strongest_color(tmp_path / "challenger", data, channels=(1, 2, 0))
    raw = prepared.parent / "raw"
    rival = measure_rival(champion, raw, prepared)
    assert rival.predictions.hits.all()
    np.testing.assert_array_equal(rival.predictions.labels, PreparedImages(prepared, data, "test").labels)
    verdict = judge_challenger(
        measure_model(challenger, raw, prepared), 0, rival, GateConfig(better_than_guessing=False)
    )
    assert (verdict.outcome, verdict.comparison.verdict) == ("failed", "worse")


def test_a_model_of_other_classes_is_not_measured(prepared, data, tmp_path):
    model = strongest_color(tmp_path / "model", data.model_copy(update={"classes": ("cat", "dog", "fox")}))
    why = "v4 knows other classes (has 'fox'; lacks 'emu')"
    assert measure_rival(model, prepared.parent / "raw", prepared) == Rival(None, why, is_incomparable=True)
    with pytest.raises(UserError, match="classifier v4 knows other classes"):
        measure_model(model, prepared.parent / "raw", prepared)


def test_without_a_champion_there_is_nothing_to_measure(prepared):
    assert measure_rival(None, prepared.parent / "raw", prepared) == NONE
