import numpy as np
import pytest
from scipy.stats import binom
from sklearn.utils import resample

from models.judging.compare import bootstrap_interval, compare, mcnemar_p, wilson_interval

ALLOWED = 0.02


def hits(num_images, won, lost, both):
    """Champion's and challenger's hits, of images that both, one or neither classify correctly."""
    champion, challenger = np.zeros((2, num_images), dtype=bool)
    champion[: both + lost] = True
    challenger[:both] = challenger[both + lost : both + lost + won] = True
    return champion, challenger


@pytest.mark.parametrize(
    ("num_images", "won", "lost", "verdict"),
    [
        (368, 20, 4, "better"),
        (368, 0, 0, "no worse"),
        (368, 3, 3, "no worse"),
        (368, 2, 3, "no worse"),
        (368, 4, 20, "worse"),
        (368, 15, 15, "too few images to tell"),
        (10_000, 320, 330, "no worse"),
        (10_000, 300, 450, "worse"),
        # Surely a little worse, and surely no more than is allowed.
        (100_000, 2_000, 3_000, "no worse"),
        # On so few images, models that always agree may still differ.
        (20, 0, 0, "too few images to tell"),
        (20, 2, 1, "too few images to tell"),
        (20, 0, 12, "worse"),
    ],
)
def test_the_verdict_follows_from_the_interval(num_images, won, lost, verdict):
    found = compare(*hits(num_images, won, lost, both=5), ALLOWED)
    assert found.verdict == verdict
    assert str(found).startswith(f"{verdict}: ")
    assert (found.won, found.lost, found.num_images) == (won, lost, num_images)
    assert found.difference == pytest.approx(found.challenger_accuracy - found.champion_accuracy)


def test_the_interval_is_that_of_images_drawn_one_by_one():
    outcomes = np.repeat([1, -1, 0], [31, 21, 250])  # with the two images that are added
    drawn = [resample(outcomes, random_state=seed).mean() for seed in range(4000)]
    expected = np.quantile(drawn, [0.025, 0.975])
    assert bootstrap_interval(30, 20, 300) == pytest.approx(expected, abs=0.004)
    assert bootstrap_interval(30, 20, 300) == bootstrap_interval(30, 20, 300)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (0, 1), (5, 0), (3, 9), (7, 7), (412, 500)])
def test_mcnemar_against_scipy(won, lost):
    few, all_ = min(won, lost), won + lost
    expected = 2 * binom.cdf(few, all_, 0.5) - binom.pmf(few, all_, 0.5)
    assert mcnemar_p(won, lost) == pytest.approx(min(1, expected), rel=1e-6)


def test_wilsons_interval_by_hand():
    # Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662, 0 of 20 is 0 to 0.1611.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
