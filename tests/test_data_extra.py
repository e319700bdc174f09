"""Transforms of torchvision, as a user names them."""

from dataclasses import replace

import pytest
import torch
from checkpoints import assert_equal, interrupt, stop_at
from conftest import tiny_job
from pydantic import ValidationError

from core.errors import UserError
from data.augmentation.extra import make_transforms
from data.config import AugmentationConfig
from models.training.job import LAST
from models.training.train import build_classifier, train

NOISY = AugmentationConfig(extra=({"RandomRotation": {"degrees": 20}}, {"GaussianNoise": {"sigma": 0.2}}))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"RandomGreyscale": {}}, r"RandomGreyscale\(\): torchvision.* no transform of this name; near it: RandomGray"),
        ({"functional": {}}, "no transform of this name"),
        ({"RandomGrayscale": {"q": 0.1}}, r"RandomGrayscale\(q=0\.1\): .*unexpected keyword argument 'q'$"),
        ({"RandomRotation": {}}, r"RandomRotation\(\): .*missing 1 required positional argument: 'degrees'$"),
        ({"RandomCrop": {"size": 8}}, r"shape and dtype: \[2, 3, 20, 20\], torch\.float32 became \[2, 3, 8, 8\]"),
        ({"ToPILImage": {}}, r"^augmentation\.extra: ToPILImage\(\): "),
        ({"MixUp": {"num_classes": 3}}, r"^augmentation\.extra: MixUp\(num_classes=3\): "),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(extra, message):
    with pytest.raises(UserError, match=message) as error:
        make_transforms([extra], 20)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("extra", [({},), ({"A": {}, "B": {}},), ("RandomGrayscale",)])
def test_each_item_is_one_name_with_its_arguments(extra):
    with pytest.raises(ValidationError):
        AugmentationConfig(extra=extra)


def test_they_see_levels_from_0_to_1_and_draw_by_seed_epoch_and_step(prepared):
    job = tiny_job(prepared)
    images = torch.randint(256, (4, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4) % 3

    def augmented(epoch=1, step=2, **options):
        config = AugmentationConfig.model_validate({"pca_color": 0} | options)
        classifier = build_classifier(replace(job, augmentation=config))
        return classifier.normalize.undo(classifier.augmentation(images, labels, epoch, step).pixels)

    plain, inverted = augmented(), augmented(extra=[{"RandomInvert": {"p": 1}}])
    assert torch.equal(inverted, 255 - plain)
    noisy = [augmented(extra=NOISY.extra) for _ in range(2)]
    assert torch.equal(*noisy)
    assert not torch.equal(noisy[0], augmented(step=3, extra=NOISY.extra))
    assert not torch.equal(noisy[0], augmented(epoch=2, extra=NOISY.extra))


def test_a_resumed_training_repeats_them(prepared, tmp_path, monkeypatch):
    job = replace(tiny_job(prepared, "alexnet", checkpoint_minutes=1e-9, max_epochs=2), augmentation=NOISY)
    train(job, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 5, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(job, tmp_path / "stopped")
    train(job, tmp_path / "stopped")
    assert_equal(tmp_path / "whole" / LAST, tmp_path / "stopped" / LAST)
