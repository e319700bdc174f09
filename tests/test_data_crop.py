import numpy as np
import pytest
import torch
from images import noise
from PIL import Image

from data.augmentation.crop import _copy, _gather, _interpolate, _resample

# top, left, height, width: all of it, enlarged, reduced, narrow, in a corner, one pixel
BOXES = [(0, 0, 40, 40), (3, 5, 10, 12), (1, 2, 38, 37), (0, 10, 40, 7), (30, 31, 10, 9), (39, 0, 1, 1)]


def stored(num_images, size):
    return torch.from_numpy(np.stack([noise(size, size, seed) for seed in range(num_images)]))


def mirrors(num_images):
    return torch.arange(num_images) % 2 == 1


def test_a_loop_and_a_gather_cut_the_same():
    """The one runs on a CPU, the other on an accelerator."""
    images, corners = stored(50, 12), torch.randint(4, (50, 2), generator=torch.Generator().manual_seed(0))
    arguments = images, corners, mirrors(50), 9
    for index, (top, left) in enumerate(corners.tolist()):
        square = images[index, top : top + 9, left : left + 9].numpy()
        expected = np.fliplr(square) if index % 2 else square
        np.testing.assert_array_equal(_copy(*arguments)[index], expected)
        np.testing.assert_array_equal(_gather(*arguments)[index], expected)


@pytest.mark.parametrize("resize", [_interpolate, _resample])
@pytest.mark.parametrize("size", [16, 40, 60])
def test_a_resized_crop_is_pillows(resize, size):
    """Pillow rounds after each of two passes, so that it is off by a level at most."""
    images = stored(len(BOXES), 40)
    found = resize(images, torch.tensor(BOXES), mirrors(len(BOXES)), size)
    assert (found.dtype, found.shape) == (torch.uint8, (len(BOXES), size, size, 3))
    for index, (top, left, height, width) in enumerate(BOXES):
        part = Image.fromarray(images[index].numpy()).crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
        expected = np.fliplr(expected) if index % 2 else expected
        assert np.abs(found[index].numpy().astype(int) - expected).max() <= 1


def test_a_network_in_bfloat16_resizes_no_worse():
    arguments = stored(len(BOXES), 40), torch.tensor(BOXES), mirrors(len(BOXES)), 16
    with torch.autocast("cpu", torch.bfloat16):
        rounded = _resample(*arguments)
    assert torch.equal(rounded, _resample(*arguments))
