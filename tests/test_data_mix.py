import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from data.augmentation.mix import Mixing, _box, draw_mixing

NUM_IMAGES, NUM_CLASSES, SIZE = 5, 4, 12
IMAGES = torch.rand(NUM_IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([3, 0, 2, 2, 1])
BEFORE = (4, 0, 1, 2, 3)
"""torchvision mixes every image with the one before it."""


def torchvisions(transform, **params):
    params |= {"labels": LABELS, "batch_size": NUM_IMAGES}
    return transform.transform(IMAGES, params), transform.transform(LABELS, params)


def blended(mixing, images=IMAGES):
    images = images.clone()
    mixing.blend(images)
    return images


@pytest.mark.parametrize("kept", [0, 0.3, 1])
def test_mixup_is_torchvisions(kept):
    pixels, targets = torchvisions(v2.MixUp(num_classes=NUM_CLASSES), lam=kept)
    torch.testing.assert_close(blended(Mixing(kept, None, BEFORE)), pixels)
    torch.testing.assert_close(Mixing(kept, None, BEFORE).targets(LABELS, NUM_CLASSES), targets)


@pytest.mark.parametrize("box", [(0, 0, 12, 12), (2, 5, 4, 7), (11, 0, 1, 3), (6, 6, 0, 0)])
def test_cutmix_is_torchvisions(box):
    top, left, height, width = box
    kept = 1 - height * width / SIZE**2
    corners = (left, top, left + width, top + height)
    pixels, targets = torchvisions(v2.CutMix(num_classes=NUM_CLASSES), box=corners, lam_adjusted=kept)
    assert torch.equal(blended(Mixing(kept, box, BEFORE)), pixels)
    torch.testing.assert_close(Mixing(kept, box, BEFORE).targets(LABELS, NUM_CLASSES), targets)


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.99, 1.0])
def test_the_square_is_torchvisions(kept, monkeypatch):
    transform = v2.CutMix(num_classes=NUM_CLASSES)
    monkeypatch.setattr(transform._dist, "sample", lambda shape: torch.tensor([kept]))
    for column in range(0, SIZE, 3):
        for row in range(0, SIZE, 4):
            places = iter([torch.tensor([column]), torch.tensor([row])])
            with monkeypatch.context() as patch:
                patch.setattr(torch, "randint", lambda *_, places=places, **__: next(places))
                left, top, right, bottom = transform.make_params([IMAGES])["box"]
            assert _box(kept, SIZE, row, column) == (top, left, bottom - top, right - left)


def test_shares_are_drawn_from_beta():
    """Of Beta(a, a) the mean is 1/2 and the variance 1 / (4 (2 a + 1))."""
    kept = np.array([draw_mixing(0.4, 0, (4, 3, SIZE, SIZE), seed).kept for seed in range(2000)])
    assert abs(kept.mean() - 0.5) < 4 * math.sqrt(1 / 7.2 / 2000)
    assert kept.var() == pytest.approx(1 / 7.2, rel=0.1)


@pytest.mark.parametrize(("mixup", "cutmix", "share"), [(1, 0, 0), (0, 1, 1), (0.2, 1, 0.5)])
def test_one_of_both_is_drawn_a_step(mixup, cutmix, share):
    mixings = [draw_mixing(mixup, cutmix, (4, 3, 100, 100), seed) for seed in range(400)]
    cut = [mixing for mixing in mixings if mixing.box]
    assert abs(len(cut) - 400 * share) <= 4 * math.sqrt(400 * share * (1 - share))
    # What an image keeps of its label is what it keeps of its pixels.
    for mixing in cut:
        assert mixing.kept == 1 - mixing.box[2] * mixing.box[3] / 100**2
    assert draw_mixing(mixup, cutmix, (4, 3, 100, 100), 7) == draw_mixing(mixup, cutmix, (4, 3, 100, 100), 7)


def test_a_batch_of_one_is_mixed_with_itself():
    torch.testing.assert_close(blended(Mixing(0.3, None, (0,)), IMAGES[:1]), IMAGES[:1])
    assert Mixing(0.3, None, (0,)).targets(LABELS[:1], NUM_CLASSES).tolist() == [[0, 0, 0, 1]]


def test_partners_are_a_permutation_of_the_batch():
    drawn = [draw_mixing(1, 0, (50, 3, 8, 8), seed).partners for seed in range(2)]
    assert drawn[0] != drawn[1]
    assert sorted(drawn[0]) == list(range(50))
