import logging
import re

import numpy as np
import pytest
import torch
from conftest import draw_classes, tiny_job
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from data.batches.loader import Batches
from data.batches.shards import PreparedImages
from data.config import DataConfig
from data.ingest.stage import ingest
from data.preparing.stage import prepare
from models.config import TrainingConfig
from models.steps import _tell_balance
from models.training.class_balance import AUTO_BALANCE, AUTO_RATIO, class_weights, resolve_balance
from models.training.train import build_classifier, train


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Two classes of 60 images and one of 4."""
    folder = tmp_path_factory.mktemp("uneven")
    source = draw_classes(folder / "photos", ["cat", "dog", "emu"], 60)
    for number in range(4, 60):
        (source / "emu" / f"{number}.png").unlink()
    config = DataConfig(source="folder", path=source, size=24, split_seed=1)
    ingest(config, folder / "raw", folder / "state.json")
    prepare(config, folder / "raw", folder / "prepared", folder / "parts")
    return folder / "prepared"


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=20), st.sampled_from(["weights", "sampling"]))
def test_weights_average_to_one_over_the_images_and_fall_with_the_size_of_a_class(counts, balance):
    weights = class_weights(counts, balance)
    assert np.average(weights, weights=counts) == pytest.approx(1)
    by_size = [weight for _, weight in sorted(zip(counts, weights, strict=True))]
    assert by_size == sorted(by_size, reverse=True)


def test_auto_balances_classes_of_very_different_size():
    auto = TrainingConfig(class_balance="auto")
    assert resolve_balance(auto, [100, 100 * AUTO_RATIO]) == "none"
    assert resolve_balance(auto, [100, 100 * AUTO_RATIO + 1]) == AUTO_BALANCE
    for chosen in ("none", "weights", "sampling"):
        assert resolve_balance(TrainingConfig(class_balance=chosen), [1, 1000]) == chosen


def test_the_log_says_what_auto_has_chosen(uneven, caplog):
    job = tiny_job(uneven, class_balance="auto")
    counts = job.manifest.splits["train"]
    with caplog.at_level(logging.INFO, "convoy"):
        _tell_balance(job)
        _tell_balance(tiny_job(uneven, class_balance="none"))
    sizes = rf"class '\w+' has {max(counts.values())} training images, class 'emu' {counts['emu']}"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"train: training.class_balance auto is {AUTO_BALANCE}: ")
    assert re.search(sizes, caplog.messages[0])


def test_the_loss_of_an_image_is_multiplied_by_the_weight_of_its_class(uneven):
    classifier = build_classifier(tiny_job(uneven, class_balance="weights"))
    weights, logits, labels = classifier.class_weights, torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    assert weights[2] > 2 * weights[0]
    smoothing = classifier.recipe.label_smoothing
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing) * weights[labels]
    torch.testing.assert_close(classifier._loss(logits, labels), each.mean())
    one_hot = F.one_hot(labels, 3).float()
    torch.testing.assert_close(classifier._loss(logits, one_hot), each.mean())
    assert "class_weights" not in classifier.state_dict()
    assert build_classifier(tiny_job(uneven, class_balance="none")).class_weights is None


def test_rare_classes_are_sampled_more_often(uneven):
    job = tiny_job(uneven, class_balance="sampling")
    images = PreparedImages(uneven, job.manifest, "train")
    batches, drawn = Batches(images, 16, shuffle_seed=0, class_weights=job.weights_of("sampling")), np.zeros(3)
    for epoch in range(20):
        batches.epoch = epoch
        drawn += np.bincount(torch.cat([batch.labels for batch in batches]), minlength=3)
    expected = np.full(3, 1 / 3)
    deviation = np.sqrt(expected * (1 - expected) * drawn.sum())
    assert (np.abs(drawn - expected * drawn.sum()) < 4 * deviation).all()


def test_only_the_chosen_way_is_taken(uneven, tmp_path, monkeypatch):
    seen = []

    def stop(*_, class_weights, **__):
        seen.append(bool(class_weights))
        raise KeyboardInterrupt

    monkeypatch.setattr("models.training.train.ImageDataModule", stop)
    for balance in ("none", "weights", "sampling"):
        with pytest.raises(KeyboardInterrupt):
            train(tiny_job(uneven, class_balance=balance), tmp_path)
    assert seen == [False, False, True]
