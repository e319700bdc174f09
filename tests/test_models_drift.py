"""Drift: quiet on images of the same distribution, an alarm on others."""

import numpy as np
import pytest

from core.errors import UserError
from models.judging.drift import Window, find_drift, ks_distance, ks_p_value, measure_traits

CLASSES = ("cat", "dog", "emu")


def draw(rng, number, shift=0.0, classes=(1, 1, 1)):
    """Softmax outputs of a model that is mostly right, and traits."""
    labels = rng.choice(3, number, p=np.array(classes) / sum(classes))
    logits = rng.normal(size=(number, 3)) + 2 * np.eye(3)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Window(probabilities, rng.normal(0.5 + shift, 0.1, size=(number, 2)))


def test_the_p_value_is_that_of_the_tables():
    # Smirnov's limit: P(K > 1.3581) = 0.05, P(K > 1.9495) = 0.001; many images, so that no correction counts.
    number = 10**8
    root = np.sqrt(number / 2)
    assert ks_p_value(1.3581 / root, number, number) == pytest.approx(0.05, rel=1e-3)
    assert ks_p_value(1.9495 / root, number, number) == pytest.approx(0.001, rel=1e-3)
    assert ks_p_value(0, 10, 10) == 1
    assert ks_p_value(1, 100, 100) == pytest.approx(0, abs=1e-40)


def test_the_distance_of_samples():
    first, second = np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])
    assert ks_distance(first, second) == 0.5
    assert ks_distance(first, first) == 0
    assert ks_distance(first, first + 10) == 1


def test_of_a_thousand_windows_without_drift_hardly_one_gives_an_alarm():
    rng = np.random.default_rng(0)
    before = draw(rng, 2000)
    alarms = sum(bool(find_drift(before, draw(rng, 100), CLASSES).alarms) for _ in range(1000))
    # With a chance of 0.001 each, 5 or more have a chance of 0.0037.
    assert alarms < 5


@pytest.mark.parametrize(
    ("change", "found"),
    [({"shift": 0.1}, "brightness"), ({"classes": (6, 1, 1)}, "probability of cat")],
)
def test_drift_is_found_and_named(change, found):
    rng = np.random.default_rng(1)
    drift = find_drift(draw(rng, 500), draw(rng, 200, **change), CLASSES)
    assert found in {one.name for one in drift.alarms}
    assert drift.threshold == pytest.approx(0.001 / 5)
    assert sum(share for share, _ in drift.shares.values()) == pytest.approx(1)


def test_traits_of_a_picture():
    grey = np.full((1, 4, 4, 3), 51, dtype=np.uint8)
    board = np.indices((4, 4)).sum(axis=0) % 2 * np.uint8(255)
    both = np.concatenate([grey, np.repeat(board[None, :, :, None], 3, axis=3).astype(np.uint8)])
    assert measure_traits(both).tolist() == [pytest.approx([0.2, 0]), pytest.approx([0.5, 1])]


def test_too_few_images():
    rng = np.random.default_rng(2)
    with pytest.raises(UserError, match="20 images are too few to tell drift from chance: 30 are needed"):
        find_drift(draw(rng, 100), draw(rng, 20), CLASSES)
