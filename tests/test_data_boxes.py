import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from data.augmentation.augment import CROP_ASPECT, ERASED_AREA, ERASED_ASPECT
from data.augmentation.boxes import _erase_mask, _erase_slices, draw_boxes

SIDE = 64
WHOLE, NOTHING = (0, 0, SIDE, SIDE), (0, 0, 0, 0)


def boxes(count, seed=0, **options):
    defaults = {"area": (0.08, 1), "aspect": CROP_ASPECT, "largest": SIDE, "otherwise": WHOLE}
    return draw_boxes(count, SIDE, **defaults | options, draws=torch.Generator().manual_seed(seed))


def torchvisions(transform, count, names):
    """Rectangles that torchvision draws, [count, 4]."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.zeros(3, SIDE, SIDE)
        params = [transform.make_params([image]) for _ in range(count)]
    return np.array([[one[name] for name in names] for one in params])


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        ({}, v2.RandomResizedCrop(SIDE), ("top", "left", "height", "width")),
        (
            {"area": ERASED_AREA, "aspect": ERASED_ASPECT, "largest": SIDE - 1, "otherwise": NOTHING},
            v2.RandomErasing(p=1),
            "ijhw",
        ),
    ],
    ids=["resized crop", "erasing"],
)
def test_rectangles_are_spread_as_torchvisions(ours, theirs, names):
    """Quartiles of place, sides, area and aspect; that of 2000 draws has a deviation of half a draw in 22."""
    found, expected = boxes(2000, **ours).numpy(), torchvisions(theirs, 2000, names)
    for one, other in zip(_features(found), _features(expected), strict=True):
        for share in (0.25, 0.5, 0.75):
            # sqrt(0.25 * 0.75 / 2000) to sqrt(0.5 * 0.5 / 2000) = 0.011, twice, because both are drawn.
            below = (one < np.quantile(other, share)).mean(), (one <= np.quantile(other, share)).mean()
            assert below[0] - 5 * 0.016 < share < below[1] + 5 * 0.016


def _features(rectangles):
    top, left, height, width = rectangles.T
    return top, left, height, width, height * width, width / height


@pytest.mark.parametrize("least", [0.001, 0.5, 0.99, 1])
def test_every_rectangle_lies_in_its_square(least):
    top, left, height, width = boxes(500, area=(least, 1)).T
    assert (torch.stack([top, left]) >= 0).all()
    assert (torch.stack([height, width]) >= 1).all()
    assert (top + height <= SIDE).all()
    assert (left + width <= SIDE).all()
    # Of all tries that have the share, those of another aspect do not fit: then the whole square is taken.
    if least == 1:
        assert boxes(500, area=(1, 1)).tolist() == [list(WHOLE)] * 500


def test_what_never_fits_gives_way():
    assert boxes(3, area=(1, 1), largest=SIDE - 1, otherwise=NOTHING).tolist() == [list(NOTHING)] * 3


def test_draws_follow_from_the_generator():
    before = torch.random.get_rng_state()
    assert torch.equal(boxes(50), boxes(50))
    assert not torch.equal(boxes(50), boxes(50, seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("erase", [_erase_slices, _erase_mask])
def test_a_rectangle_is_erased_and_nothing_else(erase):
    pixels = torch.rand(4, 3, 9, 9).add(1).contiguous(memory_format=torch.channels_last)
    rectangles = [(0, 0, 9, 9), (2, 3, 4, 1), (8, 8, 1, 1), NOTHING]
    expected = pixels.numpy().copy()
    for image, (top, left, height, width) in zip(expected, rectangles, strict=True):
        image[:, top : top + height, left : left + width] = 0
    erase(pixels, torch.tensor(rectangles))
    np.testing.assert_array_equal(pixels, expected)
