import pytest

from serving.rollout.canary import Answered, Figures, RolloutConfig, judge_canary

CONFIG = RolloutConfig(canary_min_requests=100, canary_seconds=30, canary_max_seconds=300)


def figures(num_requests, num_failed=0, milliseconds=20.0):
    return Figures(num_requests, num_failed, milliseconds / 1000, milliseconds / 1000)


def test_figures_of_answers():
    answers = [Answered("a", 200, number / 100) for number in range(100)]
    answers += [Answered("a", 503, 9.0), Answered("a", 499, 9.0)]
    assert Figures.of(answers) == Figures(101, 1, 0.5, 0.95)
    assert Figures.of([]).failure_rate == 0


@pytest.mark.parametrize(
    ("canary", "stable", "seconds", "verdict", "why"),
    [
        (figures(100), figures(900), 29, "wait", "100 of 100"),
        (figures(99), figures(900), 31, "wait", "99 of 100"),
        (figures(100), figures(900), 30, "promote", "0 of 100 failed"),
        # nobody asks: there is nothing to promote it by
        (figures(99), figures(900), 300, "withdraw", "too few requests"),
        # at once, however short it has been there
        (figures(10, 10), figures(90), 1, "withdraw", "fails more often: 100.0% against 0.0%"),
        (figures(9, 9), figures(90), 1, "wait", ""),
        # two standard deviations of 2 in 1,000 are 0.94 points, and 1 is allowed: 2 % are more, 1 % is not
        (figures(100, 2), figures(900), 30, "withdraw", "2.0% against 0.0%"),
        (figures(100, 1), figures(900), 30, "promote", ""),
        # clients who send what is no image do so to both
        (figures(100, 12), figures(900, 90), 30, "promote", ""),
        (figures(100, 40), figures(900, 90), 30, "withdraw", "40.0% against 10.0%"),
        (figures(100, 0, 31), figures(900), 30, "withdraw", "slower: median 31.0 ms against 20.0 ms"),
        (figures(100, 0, 29), figures(900), 30, "promote", ""),
        # a few milliseconds more are nobody's concern
        (figures(100, 0, 5), figures(900, 0, 1), 30, "promote", ""),
        # the first answers are slow
        (figures(50, 0, 90), figures(900), 10, "wait", ""),
        (figures(100, 0, 90), figures(900), 29, "wait", ""),
        # with nothing to hold it against
        (figures(100), figures(0), 30, "promote", ""),
        (figures(100, 5), figures(0), 30, "withdraw", "5.0% against 0.0%"),
    ],
)
def test_the_judgement(canary, stable, seconds, verdict, why):
    found = judge_canary(canary, stable, seconds, CONFIG)
    assert (found.verdict, why in found.why) == (verdict, True), found
