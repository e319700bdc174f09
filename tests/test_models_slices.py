import numpy as np
import pytest
from scipy.stats import hypergeom

from models.config import GateConfig
from models.judging.evaluate import Predictions
from models.judging.gate import Rival, judge_challenger
from models.judging.slices import difference_interval, find_slices, fisher_p, worse_slices

LAX = {"better_than_guessing": False, "min_class_accuracy": None, "max_calibration_error": 1}


def hits(*shares, each=100):
    """So many of each hundred images right."""
    return np.concatenate([np.arange(each) < share for share in shares])


def column(*values, each=100):
    return [value for value in values for _ in range(each)]


@pytest.mark.parametrize(
    ("hits", "num_images", "other_hits", "num_others"), [(3, 10, 80, 90), (10, 10, 5, 20), (0, 4, 0, 9), (50, 90, 7, 9)]
)
def test_fisher_against_scipy(hits, num_images, other_hits, num_others):
    draw = hypergeom(num_images + num_others, hits + other_hits, num_images)
    expected = draw.cdf(hits) - draw.pmf(hits) / 2
    assert fisher_p(hits, num_images, other_hits, num_others) == pytest.approx(expected, abs=1e-12)


def test_agresti_and_caffo_by_hand():
    # (1 / 12, 10 / 12): difference -0.75, half 1.96 * sqrt(2 * 11 / 144 / 12 * ...)
    half = 1.959964 * (1 / 12 * 11 / 12 / 12 + 10 / 12 * 2 / 12 / 12) ** 0.5
    assert difference_interval(0, 10, 9, 10) == pytest.approx((-0.75 - half, -0.75 + half), abs=1e-6)


def test_a_slice_that_is_worse_than_the_rest_is_found_among_many():
    traits = {
        "light": column("dark", "grey", "bright"),
        "noise": [str(number % 7) for number in range(300)],
        "few": ["x"] * 9 + [""] * 291,
    }
    found = find_slices(hits(60, 90, 92), traits)
    (worst,) = worse_slices(found)
    assert (worst.name, worst.num_images, worst.accuracy, worst.rest_accuracy) == ("light dark", 100, 0.6, 0.91)
    assert worst.low < -0.31 < worst.high < 0
    assert found[0] == worst
    assert {one.trait for one in found} == {"light", "noise"}
    assert len(found) == 3 + 7


def test_where_a_model_is_alike_everywhere_nothing_is_found():
    assert worse_slices(find_slices(hits(90, 88, 91), {"light": column("dark", "grey", "bright")})) == []
    assert find_slices(hits(90), {"all": column("same")}) == ()


@pytest.mark.parametrize(("limit", "outcome"), [(None, "passed"), (0.4, "passed"), (0.3, "failed")])
def test_the_gate_judges_the_worst_slice_where_it_is_told_to(limit, outcome):
    right = hits(60, 91)
    probabilities = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9]).astype(np.float32)
    predictions = Predictions(probabilities, np.zeros(200, dtype=np.int64), ("cat", "dog"))
    slices = find_slices(right, {"light": column("dark", "bright")})
    config = GateConfig.model_validate({**LAX, "max_slice_drop": limit})
    verdict = judge_challenger(predictions, 0, Rival(None, "none"), config, slices)
    assert verdict.outcome == outcome
    assert verdict.notes[0].startswith(
        "surely worse than the rest: light dark: accuracy 0.6000 of 100 images, 0.9100 of"
    )
    assert ("worst slice 0.31 > 0.3 (light dark)" in verdict.failures) == (outcome == "failed")
