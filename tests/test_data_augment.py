import numpy as np
import pytest
import torch
from images import noise
from torchvision.transforms.v2 import functional

from data.augmentation import augment
from data.augmentation.augment import Augmentation, Normalize, center_crop
from data.augmentation.draws import seed_of
from data.augmentation.mix import draw_mixing
from data.config import AugmentationConfig
from data.manifest import ColorStatistics

# Any numbers will do, as long as no two are alike and the axes are at right angles: two turns by 0.5 and 0.8 radians.
ONE, OTHER = (np.cos(0.5), np.sin(0.5)), (np.cos(0.8), np.sin(0.8))
TURN = np.array([[ONE[0], -ONE[1], 0], [ONE[1], ONE[0], 0], [0, 0, 1]])
AXES = TURN @ np.array([[1, 0, 0], [0, OTHER[0], -OTHER[1]], [0, OTHER[1], OTHER[0]]])
COLOR = ColorStatistics.model_validate(
    {"mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.25), "eigenvalues": (0.01, 0.03, 0.1), "eigenvectors": AXES.tolist()}
)


def stored(num_images=6, size=12):
    return torch.from_numpy(np.stack([noise(size, size, seed) for seed in range(num_images)]))


def augmentation(*, crop, flip=False, seed=0, random_crop=True, **options):
    """Without the colour shift, if nobody asks for it."""
    config = AugmentationConfig(**{"crop": random_crop, "pca_color": 0} | options)
    return Augmentation(config, COLOR, crop=crop, flip=flip, seed=seed, num_classes=3)


def augmented(images, *, epoch=0, step=0, **options):
    """The network's input, and the targets, of images with labels 0, 1, 2, 0, 1, 2, ..."""
    return augmentation(**options)(images, torch.arange(len(images)) % 3, epoch, step)


def cut(images, **options):
    """Crop and mirror as pixels again, uint8 [N, C, C, 3]."""
    return Normalize(COLOR.normalization).undo(augmented(images, **options).pixels)


def places(image, crop):
    """Where `crop` [C, C, 3] is found in `image` [S, S, 3], which is noise, so that it is found once."""
    size, span = len(crop), range(len(image) - len(crop) + 1)
    return [(y, x) for y in span for x in span if np.array_equal(image[y : y + size, x : x + size], crop)]


def test_normalize_is_mean_and_deviation():
    images = stored()
    pixels = Normalize(COLOR.normalization)(images)
    expected = (images.numpy() / 255 - COLOR.mean) / COLOR.std
    assert (pixels.dtype, pixels.shape) == (torch.float32, (6, 3, 12, 12))
    np.testing.assert_allclose(pixels.permute(0, 2, 3, 1), expected, atol=1e-6)


def test_normalize_adds_one_shift_an_image():
    images, shift = stored(), torch.arange(18.0).reshape(6, 3)
    shifted = Normalize(COLOR.normalization)(images, shift) - Normalize(COLOR.normalization)(images)
    np.testing.assert_allclose(shifted, shift[:, :, None, None].expand(6, 3, 12, 12), atol=1e-5)


@pytest.mark.parametrize("block", [1, 800, 1 << 17])  # smaller than an image (12 * 12 * 3 = 432), than two, than all
@pytest.mark.parametrize("num_images", [1, 5])
def test_blocks_give_what_the_plain_formula_gives(block, num_images, monkeypatch):
    monkeypatch.setattr(augment, "BLOCK", block)
    images, shift = stored(num_images, size=14)[:, 1:13, 1:13], torch.randn(num_images, 3)
    expected = (images.numpy() / 255 - COLOR.mean) / COLOR.std + shift.numpy()[:, None, None]
    np.testing.assert_allclose(Normalize(COLOR.normalization)(images, shift).permute(0, 2, 3, 1), expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = Normalize(COLOR.normalization)(images, shift)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, Normalize(COLOR.normalization)(images, shift).bfloat16())


def test_the_network_gets_its_channels_last():
    assert Normalize(COLOR.normalization)(stored()).is_contiguous(memory_format=torch.channels_last)


def test_normalizing_can_be_undone():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    normalize = Normalize(COLOR.normalization)
    assert torch.equal(normalize.undo(normalize(levels)), levels)
    # What a colour shift moves out of range is clipped, not wrapped around.
    assert (normalize.undo(normalize(levels, torch.full((1, 3), 99.0))) == 255).all()
    assert (normalize.undo(normalize(levels, torch.full((1, 3), -99.0))) == 0).all()


@pytest.mark.parametrize("crop", [1, 5, 8, 11, 12])
def test_a_crop_lies_in_its_stored_image(crop):
    images = stored(40)
    cropped = cut(images, crop=crop)
    assert (cropped.dtype, cropped.shape) == (torch.uint8, (40, crop, crop, 3))
    if crop == 12:  # as large as the stored images, which get 2 pixels of black on every side
        images = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0))))
    found = [places(image, one) for image, one in zip(images.numpy(), cropped.numpy(), strict=True)]
    assert all(len(place) >= 1 for place in found)
    if crop == 8:
        assert len({place for (place,) in found}) > 10


def test_every_crop_is_drawn_equally_often():
    images = stored(1).expand(9000, -1, -1, -1)
    cropped = cut(images, crop=10)
    corners = {tuple(stored(1)[0, y, x].tolist()): (y, x) for y in range(3) for x in range(3)}
    counts = torch.zeros(3, 3)
    for corner in cropped[:, 0, 0].tolist():
        counts[corners[tuple(corner)]] += 1
    # 1000 each; the deviation of a binomial count is sqrt(9000 * 1/9 * 8/9) = 30.
    assert (counts - 1000).abs().max() < 4 * 30


def test_half_of_the_images_are_mirrored():
    images = stored(400, size=4)
    plain = cut(images, crop=4, padding=0)
    flipped = cut(images, crop=4, padding=0, flip=True)
    assert torch.equal(plain, images)
    mirrored = [
        np.array_equal(one, np.flip(image, 1)) for one, image in zip(flipped.numpy(), images.numpy(), strict=True)
    ]
    left = [np.array_equal(one, image) for one, image in zip(flipped.numpy(), images.numpy(), strict=True)]
    assert all(one != other for one, other in zip(mirrored, left, strict=True))
    assert abs(sum(mirrored) - 200) < 4 * (400 * 0.25) ** 0.5


def test_a_mirrored_crop_is_the_crop_mirrored():
    images = stored(50)
    plain = cut(images, crop=9, epoch=3, step=4)
    flipped = cut(images, crop=9, flip=True, epoch=3, step=4)
    for one, other in zip(plain.numpy(), flipped.numpy(), strict=True):
        assert np.array_equal(one, other) or np.array_equal(np.flip(one, 1), other)
    assert not torch.equal(plain, flipped)


def test_without_random_crops_the_centre_is_kept():
    for size, crop in ((12, 8), (12, 7), (11, 8), (12, 12)):
        images = stored(size=size)
        start = (size - crop) // 2
        expected = images[:, start : start + crop, start : start + crop]
        assert torch.equal(center_crop(images, crop), expected)
        pixels, targets = augmented(images, crop=crop, random_crop=False)
        assert torch.equal(pixels, Normalize(COLOR.normalization)(expected))
        assert targets.tolist() == [0, 1, 2, 0, 1, 2]


def test_the_color_shift_is_the_papers():
    """Section 4.1: [p1, p2, p3][a1 l1, a2 l2, a3 l3] is added to the pixels, with p and l of their covariance."""
    num_images = 20_000
    images = torch.zeros(num_images, 2, 2, 3, dtype=torch.uint8)
    normalize = Normalize(COLOR.normalization)
    shifted = augmented(images, crop=2, padding=0, pca_color=0.1).pixels
    # In units of 0..1 the shift is the deviation times what it is in units of normalized pixels.
    added = ((shifted - normalize(images))[:, :, 0, 0] * torch.tensor(COLOR.std)).numpy()
    # Turned back to the axes, what is left are the three Gaussian draws.
    draws = added @ np.array(COLOR.eigenvectors) / COLOR.eigenvalues
    covariance = np.cov(draws.T)
    deviation = 0.01 * (2 / num_images) ** 0.5  # of an estimated variance of 0.1 squared
    np.testing.assert_allclose(covariance, np.eye(3) * 0.01, atol=4 * deviation)
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=4 * 0.1 / num_images**0.5)


EACH = [
    {"pca_color": 0.1},
    {"resized_crop": 0.5},
    {"brightness": 0.4},
    {"contrast": 0.4},
    {"erasing": 0.5},
    {"mixup": 0.2},
    {"cutmix": 1},
]
EVERYTHING = {name: value for option in EACH for name, value in option.items()}


@pytest.mark.parametrize("options", [{}, *EACH, EVERYTHING], ids=str)
def test_draws_follow_from_seed_epoch_and_step_alone(options):
    images = stored(32)

    def draw(seed=0, epoch=0, step=0):
        found = augmented(images, crop=8, flip=True, seed=seed, epoch=epoch, step=step, **options)
        return found.pixels.numpy().tobytes() + found.targets.numpy().tobytes()

    before = torch.random.get_rng_state()
    first = draw(1, 2, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    draw(4, 5, 6)
    assert draw(1, 2, 3) == first
    # No two of them share their draws, neither do (1, 2) and (2, 1).
    keys = [(seed, epoch, step) for seed in range(3) for epoch in range(3) for step in range(3)]
    assert len({draw(*key) for key in keys}) == len(keys)


def test_the_stored_images_are_left_alone():
    images = stored()
    before = images.clone()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    augmentation(crop=12, flip=True, **EVERYTHING | {"erasing": 1})(images, labels, 0, 0)
    assert torch.equal(images, before)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_statistics_are_no_weights():
    """They come from the data manifest: a checkpoint that held them too would be a second owner."""
    assert Normalize(COLOR.normalization).state_dict() == {}
    assert augmentation(crop=8).state_dict() == {}


def test_each_kind_draws_from_a_stream_of_its_own():
    keys = [(seed, epoch, step) for seed in range(3) for epoch in range(3) for step in range(3)]
    assert len({seed_of(*key, stream=stream) for key in keys for stream in range(5)}) == len(keys) * 5


def test_switching_one_on_leaves_the_draws_of_the_others():
    images = stored(32)
    plain = augmented(images, crop=8, flip=True).pixels
    erased = augmented(images, crop=8, flip=True, erasing=0.5).pixels
    bright = augmented(images, crop=8, flip=True, brightness=0.4).pixels
    both = augmented(images, crop=8, flip=True, brightness=0.4, erasing=0.5).pixels
    untouched = erased != 0
    assert 0.5 < untouched.float().mean() < 1
    assert torch.equal(erased[untouched], plain[untouched])
    assert torch.equal(both[untouched], bright[untouched])
    assert torch.equal(both[~untouched], erased[~untouched])


def test_a_resized_crop_is_mirrored_where_a_plain_one_is():
    images = stored(32, size=8)
    plain, flipped = (cut(images, crop=8, padding=0, flip=flip) for flip in (False, True))
    resized, mirrored = (cut(images, crop=8, flip=flip, resized_crop=0.3) for flip in (False, True))
    for index in range(32):
        is_mirrored = not torch.equal(plain[index], flipped[index])
        assert torch.equal(resized[index].flip(1) if is_mirrored else resized[index], mirrored[index])
    # With all of the area there is nothing to choose, and nothing to resize.
    assert torch.equal(cut(images, crop=8, resized_crop=1), images)


def test_jitter_is_torchvisions():
    """Of levels that no factor moves out of range, where torchvision clamps; in either order."""
    images = 100 + stored(20, size=8) // 8
    draws = torch.Generator().manual_seed(seed_of(0, 0, 0, stream=augment.JITTER))
    factors = 1 + 0.4 * (2 * torch.rand(2, 20, generator=draws) - 1)
    assert factors.std() > 0.1
    expected = []
    for image, brightness, contrast in zip(images.permute(0, 3, 1, 2) / 255, *factors.tolist(), strict=True):
        bright_first = functional.adjust_contrast(functional.adjust_brightness(image, brightness), contrast)
        contrast_first = functional.adjust_brightness(functional.adjust_contrast(image, contrast), brightness)
        torch.testing.assert_close(bright_first, contrast_first)
        expected.append(functional.normalize(bright_first, COLOR.mean, COLOR.std))
    found = augmented(images, crop=8, padding=0, brightness=0.4, contrast=0.4).pixels
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    # One alone has the factors that it has beside the other.
    brighter = images / 255 * factors[0, :, None, None, None]
    found = augmented(images, crop=8, padding=0, brightness=0.4).pixels
    expected = functional.normalize(brighter.permute(0, 3, 1, 2), COLOR.mean, COLOR.std)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_mean_colour_is_left_where_erased():
    pixels = augmented(stored(50, size=16), crop=16, padding=0, erasing=1).pixels
    assert (pixels == 0).flatten(1).any(dim=1).all()
    few = augmented(stored(400, size=4), crop=4, padding=0, erasing=0.25).pixels
    count = (few == 0).flatten(1).any(dim=1).sum()
    assert abs(count - 100) < 4 * (400 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize(("option", "is_cut"), [({"mixup": 0.4}, False), ({"cutmix": 1}, True)])
def test_images_and_labels_are_mixed_alike(option, is_cut):
    images, labels = stored(6, size=8), torch.tensor([0, 1, 2, 0, 1, 2])
    options = {"crop": 8, "padding": 0, "step": 3}
    plain, mixed = augmented(images, **options), augmented(images, **options, **option)
    seed = seed_of(0, 0, 3, stream=4)
    mixing = draw_mixing(option.get("mixup", 0), option.get("cutmix", 0), (6, 3, 8, 8), seed)
    assert (mixing.box is not None) == is_cut
    assert torch.equal(plain.targets, labels)
    mixing.blend(plain.pixels)
    assert torch.equal(mixed.pixels, plain.pixels)
    assert torch.equal(mixed.targets, mixing.targets(labels, 3))


def test_autocast_rounds_and_does_nothing_else():
    images, options = stored(8, size=16), {"crop": 12, "flip": True} | EVERYTHING
    exact = augmented(images, **options)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = augmented(images, **options)
    assert (rounded.pixels.dtype, rounded.targets.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(rounded.pixels.float(), exact.pixels, atol=1 / 128, rtol=1 / 128)
    assert torch.equal(rounded.targets, exact.targets)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"pca_color": 0.1}, {"resized_crop": 0.1}, EVERYTHING], ids=str)
def test_a_gpu_sees_what_a_cpu_sees(options):
    images, labels = stored(16, size=20), torch.arange(16) % 3
    module = augmentation(crop=14, flip=True, **options)
    expected = module(images, labels, 1, 2)
    found = module.cuda()(images.cuda(), labels.cuda(), 1, 2)
    # A level of 255, which resizing may round the other way, is 0.02 of the smallest deviation.
    torch.testing.assert_close(found.pixels.cpu(), expected.pixels, atol=0.03, rtol=0)
    assert torch.equal(found.targets.cpu(), expected.targets)
