from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from test_models_export import CROP, noise, served

from models.exported.export import ServedNetwork, TorchPredictor, export_onnx, export_program
from models.exported.manifest import Certainty
from models.exported.predictor import entropy, is_uncertain
from models.exported.torch_program import load_program
from models.judging.calibration import (
    calibrate,
    choose_certainty,
    error_by_chance,
    fit_temperature,
    images_needed,
    reliability,
    reliability_of,
    temper,
)
from models.judging.evaluate import Predictions

CLASSES = tuple("abcde")


def overconfident(num_images, temperature, seed=0):
    """Predictions softmax(z) of a model whose labels follow softmax(z / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (num_images, len(CLASSES)))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
    truth = temper(probabilities, temperature).astype(np.float64).cumsum(axis=1)
    labels = (rng.random((num_images, 1)) > truth).sum(axis=1).clip(max=len(CLASSES) - 1)
    return Predictions(probabilities, labels, CLASSES)


@pytest.mark.parametrize("temperature", [0.5, 1, 2.5])
def test_the_temperature_is_found_again(temperature):
    assert fit_temperature(overconfident(20_000, temperature)) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_found_makes_confidences_mean_what_they_say():
    test = overconfident(4000, 3, seed=1)
    after = calibrate(test, fit_temperature(overconfident(2000, 3)))
    assert reliability_of(test).error > 0.15
    assert reliability_of(after).error < 0.03
    np.testing.assert_array_equal(after.hits, test.hits)


def test_answers_that_are_all_right_do_not_make_certainty():
    right = Predictions(np.full((50, 2), (0.8, 0.2), dtype=np.float32), np.zeros(50, dtype=np.int64), ("a", "b"))
    # As for one image more, half of which is wrong: 50.5 of 51 right.
    (confidence, _) = temper(right.probabilities[:1], fit_temperature(right))[0]
    assert confidence == pytest.approx(50.5 / 51, abs=1e-4)


def test_the_calibration_error_by_hand():
    found = reliability(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, True, False]))
    # Half of the images are right in 100 % at 90 %, half in 50 % at 60 %.
    assert found.error == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert found.share.tolist() == [0.5, 0.5]
    assert reliability(np.array([1.0, 0.0]), np.array([True, False])).error == 0


def test_of_few_images_a_larger_error_comes_by_chance():
    few, many = (overconfident(number, 1) for number in (30, 3000))
    assert error_by_chance(few) > 0.1 > 0.03 > error_by_chance(many)
    assert reliability_of(many).error < error_by_chance(many)


def sure(confidences, hits):
    """Predictions of two classes with these confidences."""
    confidences, hits = np.array(confidences, dtype=np.float32), np.array(hits, dtype=bool)
    return Predictions(np.stack([confidences, 1 - confidences], axis=1), np.where(hits, 0, 1), ("a", "b"))


def test_the_threshold_is_the_lowest_that_keeps_the_precision():
    # 0.99 to 0.52 in steps of 0.0047; one in ten wrong below 0.8.
    confidences = np.linspace(0.99, 0.52, 101)
    wrong = (confidences < 0.8) & (np.arange(101) % 2 == 0)
    found = choose_certainty(sure(confidences, ~wrong), 0.95)
    kept = confidences >= found.threshold
    assert (~wrong[kept]).mean() >= 0.95
    assert (~wrong[confidences >= found.threshold - 0.02]).mean() < 0.95
    assert (found.coverage, found.precision) == (kept.mean(), (~wrong[kept]).mean())
    assert found.num_images == 101


def test_a_precision_that_is_not_reached_is_come_near():
    confidences, hits = np.linspace(0.99, 0.52, 100), np.arange(100) % 10 != 0
    hits[60:] = False
    found = choose_certainty(sure(confidences, hits), 0.95)
    assert found.precision == pytest.approx(0.9, abs=0.02)
    assert found.coverage >= 0.2


def test_where_all_answers_are_right_only_strange_images_are_uncertain():
    found = choose_certainty(sure(np.linspace(0.99, 0.9, 200), np.ones(200)), 0.95)
    assert (found.threshold, found.precision, found.coverage) == (0, 1, 0.95)
    assert is_uncertain(np.array([0.5, 0.5], dtype=np.float32), found)
    assert not is_uncertain(np.array([0.95, 0.05], dtype=np.float32), found)


@pytest.mark.parametrize(("min_precision", "needed"), [(0.95, 100), (0.9, 50), (0.99, 500)])
def test_too_few_validation_images_give_no_threshold(min_precision, needed):
    assert images_needed(min_precision) == needed
    assert choose_certainty(sure([0.9] * (needed - 1), [True] * (needed - 1)), min_precision) is None
    assert choose_certainty(sure([0.9] * needed, [True] * needed), min_precision)
    assert not is_uncertain(np.array([0.5, 0.5], dtype=np.float32), None)


def test_an_answer_is_uncertain_below_the_threshold_or_above_the_entropy():
    certainty = Certainty(threshold=0.6, max_entropy=0.9, precision=1, coverage=1, num_images=100)
    probabilities = np.array([[0.7, 0.3, 0], [0.55, 0.45, 0], [0.62, 0.19, 0.19]], dtype=np.float32)
    assert entropy(probabilities) == pytest.approx([0.6109, 0.6881, 0.9274], abs=1e-4)
    assert [is_uncertain(row, certainty) for row in probabilities] == [False, True, True]


def test_the_temperature_is_inside_what_is_exported(prepared, tmp_path):
    plain = served(prepared, "lenet5")
    network = ServedNetwork(SimpleNamespace(normalize=plain.normalize, network=plain.network), 2.5)
    images = noise(7)
    expected = temper(TorchPredictor(plain)(images), 2.5)
    np.testing.assert_allclose(TorchPredictor(network)(images), expected, atol=1e-5)
    (found,) = onnxruntime.InferenceSession(export_onnx(network, CROP, tmp_path)).run(None, {"image": images})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    program, _ = load_program(export_program(network, CROP, tmp_path), torch.device("cpu"))
    np.testing.assert_allclose(program(torch.from_numpy(images)).detach().numpy(), expected, atol=0.02)
