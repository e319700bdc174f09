import hashlib
from math import sqrt

from hypothesis import given
from hypothesis import strategies as st

from data.config import DataConfig
from data.splits import split_of

ALL = frozenset({"val", "test"})


def digest(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_shares_are_those_asked_for():
    config = DataConfig(val_fraction=0.1, test_fraction=0.2)
    splits = [split_of(digest(number), config, given=None, missing=ALL) for number in range(10_000)]
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        # four deviations of the binomial distribution
        assert abs(splits.count(split) - 10_000 * share) < 4 * sqrt(10_000 * share * (1 - share))


@given(st.integers(), st.integers(0, 5))
def test_a_split_follows_from_content_and_seed(number, seed):
    config = DataConfig(split_seed=seed)
    assert split_of(digest(number), config, given=None, missing=ALL) == split_of(
        digest(number), config, given=None, missing=ALL
    )


@given(st.integers())
def test_splits_that_are_given_stay_and_only_missing_ones_are_taken_from_train(number):
    config = DataConfig()
    assert split_of(digest(number), config, given="val", missing=ALL) == "val"
    assert split_of(digest(number), config, given="test", missing=frozenset()) == "test"
    assert split_of(digest(number), config, given="train", missing=frozenset()) == "train"
    assert split_of(digest(number), config, given="train", missing=frozenset({"val"})) in ("train", "val")


def test_another_seed_is_another_split():
    first, second = (
        [split_of(digest(n), DataConfig(split_seed=seed), given=None, missing=ALL) for n in range(100)]
        for seed in (0, 1)
    )
    assert first != second
