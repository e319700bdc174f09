"""Wrong labels are found among features of made classes: clouds of points that overlap a little."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from images import photos, write

from data.batches.shards import PreparedImages
from data.config import DataConfig
from data.ingest.stage import ingest
from data.preparing.stage import prepare
from data.quality.label_errors import NUM_FOLDS, find_suspects, out_of_fold, rank, wrong_labels
from data.quality.page import quality_page
from data.quality.report import MAX_LISTED

NUM_CLASSES = 4


def clouds(counts, seed, num_features=16):
    """Features [N, D] and labels [N]: classes whose centres are three deviations apart, shuffled."""
    draws = np.random.default_rng(seed)
    labels = draws.permutation(np.repeat(np.arange(len(counts)), counts))
    centres = draws.normal(size=(len(counts), num_features)) * 3 / np.sqrt(2)
    return (centres[labels] + draws.normal(size=(len(labels), num_features))).astype(np.float32), labels


def flipped(labels, share, seed):
    """Some labels made wrong; returns the new labels and which ones are wrong."""
    draws = np.random.default_rng(seed)
    wrong = draws.choice(len(labels), round(share * len(labels)), replace=False)
    given_labels = labels.copy()
    given_labels[wrong] = (labels[wrong] + draws.integers(1, labels.max() + 1, len(wrong))) % (labels.max() + 1)
    return given_labels, set(wrong.tolist())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flipped_labels_come_first_with_the_right_one(seed):
    features, labels = clouds([200, 150, 100, 150], seed)
    given_labels, wrong = flipped(labels, 0.05, seed)
    suspects = find_suspects(features, given_labels)
    first = suspects.images[: 2 * len(wrong)].tolist()
    found = wrong.intersection(first)
    assert len(found) >= 0.7 * len(wrong)
    likely = dict(zip(suspects.images.tolist(), suspects.likely.tolist(), strict=True))
    assert sum(likely[index] == labels[index] for index in found) >= 0.9 * len(found)


def test_the_worst_comes_first_and_the_same_every_time():
    features, labels = clouds([60] * NUM_CLASSES, 0)
    given_labels, _ = flipped(labels, 0.1, 0)
    probabilities = out_of_fold(features, given_labels)
    suspects, likely = rank(probabilities, given_labels)
    margins = probabilities[suspects, likely] - probabilities[suspects, given_labels[suspects]]
    assert (np.diff(margins) <= 0).all()
    assert (likely != given_labels[suspects]).all()
    again = find_suspects(features, given_labels)
    np.testing.assert_array_equal(again.images, suspects)
    np.testing.assert_allclose(again.confidence, probabilities[suspects, likely])


def test_a_probe_has_not_seen_the_images_that_it_judges():
    """Features of noise say nothing: whoever learns them by heart would be sure."""
    draws = np.random.default_rng(0)
    features, labels = draws.normal(size=(100, 80)), np.arange(100) % 2
    hits = (out_of_fold(features, labels).argmax(axis=1) == labels).mean()
    assert abs(hits - 0.5) < 4 * 0.05


def test_confident_learning_on_probabilities_by_hand():
    """Thresholds are the means of a class's own probabilities: 0.7 and 0.7; the fourth image is 0.8 sure of class 0."""
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.8, 0.2], [0.0, 1.0]])
    suspects, likely = rank(probabilities, np.array([0, 0, 1, 1, 1]))
    assert (suspects.tolist(), likely.tolist()) == ([3], [0])


def test_classes_with_fewer_images_than_folds_are_skipped():
    features, labels = clouds([40, NUM_FOLDS - 1, 40, NUM_FOLDS], 1)
    suspects = find_suspects(features, labels)
    assert suspects.skipped == [1]
    assert not np.isin(labels[suspects.images], 1).any()
    assert not (suspects.likely == 1).any()
    one = find_suspects(features[labels < 2], labels[labels < 2])
    assert (len(one.images), one.skipped) == (0, [1])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two classes of forty images, and one of three; their features know the right class of each."""
    folder = tmp_path_factory.mktemp("suspects")
    files = photos(40) | photos(3, classes=("emu",), seed=5)
    config = DataConfig(source="folder", path=write(folder / "source", files), size=8, split_seed=3)
    ingest(config, folder / "raw", folder / "state.json")
    manifest = prepare(config, folder / "raw", folder / "prepared", folder / "parts")
    features, draws = {}, np.random.default_rng(0)
    for split in ("train", "val", "test"):
        labels = PreparedImages(folder / "prepared", manifest, split).labels.copy()
        first = np.flatnonzero(labels < 2)[0]
        labels[first] = 1 - labels[first]  # the first cat or dog of each split looks like the other
        features[split] = np.eye(3)[labels] + 0.1 * draws.normal(size=(len(labels), 3))
        features[split][first] *= 3  # and more so than any other
    return SimpleNamespace(folder=folder, path=folder / "prepared", manifest=manifest, features=features)


def test_images_of_all_splits_are_reported_with_both_labels(prepared):
    finding = wrong_labels(prepared.path, prepared.manifest, prepared.features)
    images = [image for (image,) in finding.groups]
    assert {image.split for image in images} == {"train", "val", "test"}
    for image in images:
        assert image.origin.startswith(f"{image.label}/")
        assert image.likely == {"cat": "dog", "dog": "cat"}[image.label]
        assert re.fullmatch(rf"likely {image.likely} \(\d+%\)", image.note)
    assert finding.summary == (
        "3 images whose label is probably wrong; class 'emu' has fewer than 5 images and is not looked at"
    )
    fewer = wrong_labels(prepared.path, prepared.manifest, prepared.features, {images[0].sha256})
    assert [image.origin for (image,) in fewer.groups] == [image.origin for image in images[1:]]
    assert fewer.count == len(images) - 1 < MAX_LISTED


def test_the_page_shows_them_first_and_offers_the_likely_label(prepared):
    finding = wrong_labels(prepared.path, prepared.manifest, prepared.features)
    page = quality_page(prepared.path, finding, prepared.folder / "raw")
    assert page.index('<h2 id="wrong_labels">') < page.index("<h2>Classes")
    section = page[page.index('<h2 id="wrong_labels">') :]
    shown = [section.index(f'alt="{image.origin}"') for (image,) in finding.groups]
    assert shown == sorted(shown)
    for (image,) in finding.groups:
        assert f'data-sha256="{image.sha256}" data-image="" data-offered="{image.likely}"' in section
