import hashlib
from collections import Counter

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import noise, photos, ppm, write

from data.config import DataConfig
from data.ingest.stage import ingest
from data.preparing.stage import prepare
from data.splits import split_of

HASHES = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(10_000)]
ALL_MISSING = frozenset({"val", "test"})


def split(sha256, given=None, missing=ALL_MISSING, **options):
    return split_of(sha256, DataConfig(**options), given=given, missing=missing)


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.2), (0.25, 0.05), (0.4, 0.4)])
def test_the_shares_are_those_asked_for(val, test):
    counts = Counter(split(sha256, val_fraction=val, test_fraction=test) for sha256 in HASHES)
    for name, share in (("train", 1 - val - test), ("val", val), ("test", test)):
        # Chance moves a count by one binomial deviation; by four, once in 16,000 draws, and these are always the same.
        assert abs(counts[name] - len(HASHES) * share) < 4 * (len(HASHES) * share * (1 - share)) ** 0.5


def test_another_seed_is_another_split():
    one, other = ([split(sha256, split_seed=seed) for sha256 in HASHES] for seed in (0, 1))
    # With shares of 0.7, 0.1 and 0.2, two independent splits agree for 0.49 + 0.01 + 0.04 of the images.
    agreement = sum(a == b for a, b in zip(one, other, strict=True)) / len(HASHES)
    assert abs(agreement - 0.54) < 4 * (0.54 * 0.46 / len(HASHES)) ** 0.5
    assert one == [split(sha256, split_seed=0) for sha256 in HASHES]


def test_given_splits_are_kept_and_the_missing_ones_are_taken_from_train():
    for sha256 in HASHES[:1000]:
        assert split(sha256, given="val", missing=frozenset({"test"})) == "val"
        assert split(sha256, given="test", missing=frozenset()) == "test"
        assert split(sha256, given="train", missing=frozenset()) == "train"
        assert split(sha256, given="train", missing=frozenset({"val"})) in ("train", "val")
    drawn = Counter(split(sha256, given="train", missing=frozenset({"val"}), val_fraction=0.3) for sha256 in HASHES)
    assert abs(drawn["val"] - 3000) < 4 * (10_000 * 0.3 * 0.7) ** 0.5


def test_a_larger_share_takes_images_from_train_only():
    for sha256 in HASHES[:1000]:
        small, large = (split(sha256, test_fraction=0.2, val_fraction=share) for share in (0.1, 0.2))
        assert small == large or (small, large) == ("train", "val")


def prepared_splits(folder, files):
    """Split by origin, as prepared."""
    source = write(folder / "source", files)
    config = DataConfig(source="folder", path=source, size=8, val_fraction=0.3, test_fraction=0.3)
    ingest(config, folder / "raw", folder / "state.json")
    prepare(config, folder / "raw", folder / "prepared", folder / "parts")
    rows = pq.read_table(folder / "prepared" / "index.parquet").to_pylist()
    return {row["origin"]: row["split"] for row in rows}


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 40))
def test_adding_images_moves_no_others(tmp_path_factory, seed, num_added):
    folder = tmp_path_factory.mktemp("splits")
    before = prepared_splits(folder, photos(30))
    added = {f"{path}.{seed}.ppm": content for path, content in photos(num_added, seed=seed).items()}
    after = prepared_splits(folder, {**added, **photos(40, classes=("ape",), seed=seed + 1)})
    assert {origin: after[origin] for origin in before} == before
    assert len(after) > len(before)


def test_identical_images_share_a_split(tmp_path):
    images = [ppm(noise(10, 10, (7, index))) for index in range(40)]
    copies = {f"cat/{copy}-{index:02d}.ppm": image for index, image in enumerate(images) for copy in range(3)}
    splits = prepared_splits(tmp_path, {**copies, **photos(5, classes=("dog",))})
    for index in range(40):
        assert len({splits[f"cat/{copy}-{index:02d}.ppm"] for copy in range(3)}) == 1
    assert set(splits.values()) == {"train", "val", "test"}
