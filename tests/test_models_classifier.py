from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import Curves
from conftest import tiny_job
from pytorch_lightning import Callback
from torch import nn

from data.batches.loader import Batch, Share
from data.config import AugmentationConfig
from models.training.classifier import ImageClassifier
from models.training.train import build_classifier, train

MIXED = AugmentationConfig(resized_crop=0.3, brightness=0.4, contrast=0.4, erasing=0.25, mixup=0.2, cutmix=1, flip=True)


def test_every_augmentation_trains(prepared, tmp_path):
    job = replace(tiny_job(prepared, max_epochs=1), augmentation=MIXED)
    assert train(job, tmp_path).checkpoint.is_file()


def test_accuracy_is_counted_against_the_labels_and_the_loss_against_what_was_mixed(prepared, monkeypatch):
    """Of a network that is sure of an image's own label, although three quarters of it are another image."""
    classifier = build_classifier(replace(tiny_job(prepared), augmentation=AugmentationConfig(mixup=1)))
    images, labels = torch.zeros(8, 24, 24, 3, dtype=torch.uint8), torch.arange(8) % 3
    logits = 20.0 * nn.functional.one_hot(labels, 3)
    monkeypatch.setattr(classifier, "_logits", lambda _: logits)
    trainer = SimpleNamespace(log_every_n_steps=50, global_rank=0)
    for name, value in {"trainer": trainer, "current_epoch": 0, "global_step": 0, "global_rank": 0}.items():
        monkeypatch.setattr(ImageClassifier, name, value)
    draws = SimpleNamespace(beta=lambda *_: 0.25, permutation=lambda count: np.roll(np.arange(count), 1))
    monkeypatch.setattr("data.augmentation.mix.np.random.default_rng", lambda _: draws)
    loss = classifier.training_step(Batch(images, labels), 1)
    _, hits, count = classifier._sums.tolist()
    assert (hits, count) == (8, 8)
    # With smoothing s a class gets (1 - s) of its share and s / 3; where the network is sure of another, it costs 20.
    smoothing = classifier.recipe.label_smoothing
    others = torch.tensor([label != before for label, before in zip(labels, labels.roll(1), strict=True)])
    expected = 20 * ((1 - smoothing) * 0.75 * others.float().mean() + smoothing * 2 / 3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_processes_draw_for_their_share_of_the_batch(prepared):
    """What one process makes of a batch is what several make of their images of it; mixing aside."""
    options = AugmentationConfig(resized_crop=0.4, brightness=0.3, contrast=0.3, erasing=0.5, flip=True)
    augment = build_classifier(replace(tiny_job(prepared), augmentation=options)).augmentation
    images = torch.randint(256, (12, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3
    whole = augment(images, labels, 2, 5)
    for rank in range(3):
        augment.share = Share(rank, 3)
        part = augment(images[rank::3], labels[rank::3], 2, 5)
        torch.testing.assert_close(part.pixels, whole.pixels[rank::3])
        assert torch.equal(part.targets, whole.targets[rank::3])


@pytest.mark.parametrize("mixed", [False, True])
def test_smoothing_is_torchs(prepared, mixed):
    classifier = build_classifier(tiny_job(prepared, label_smoothing=0.1))
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 3, generator=draws), torch.arange(8) % 3
    targets = torch.softmax(torch.randn(8, 3, generator=draws), dim=1) if mixed else labels
    expected = nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    torch.testing.assert_close(classifier._loss(logits, targets), expected)


def test_the_progress_bar_shows_the_loss_of_a_step(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True, write=len, flush=lambda: None))
    shown, curves = [], Curves()

    class Look(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            shown.append(module.shown.get("train/step_loss"))

    train(tiny_job(prepared, max_epochs=1, log_every_n_steps=2), tmp_path, [curves], [Look()])
    first, second, *_ = curves.of("train/step_loss")
    assert shown[:4] == [None, first, first, second]
