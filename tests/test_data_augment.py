import numpy as np
import pytest
import torch

from data.augment import Augmentation, Normalize, center_crop
from data.config import AugmentationConfig
from data.manifest import ColorStatistics

COLOR = ColorStatistics(
    mean=(0.5, 0.4, 0.3),
    std=(0.25, 0.2, 0.3),
    eigenvalues=(0.01, 0.02, 0.1),
    eigenvectors=((1.0, 0.0, 0.0), (0.0, 0.6, 0.8), (0.0, -0.8, 0.6)),
)
STORED, SEEN, NUM_IMAGES = 12, 8, 64
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, STORED, STORED, 3), dtype=np.uint8))


def augmentation(*, crop=SEEN, flip=False, seed=0, **options):
    return Augmentation(AugmentationConfig(**options), COLOR, crop=crop, flip=flip, seed=seed)


def windows(image, size):
    """All crops of an image [S, S, 3], by their place."""
    places = range(image.shape[0] - size + 1)
    return {(y, x): image[y : y + size, x : x + size] for y in places for x in places}


@pytest.mark.parametrize("flip", [False, True])
def test_each_image_is_a_window_of_its_own(flip):
    cropped, _ = augmentation(flip=flip)(IMAGES, 0, 0)
    found = []
    for image, seen in zip(IMAGES, cropped, strict=True):
        candidates = windows(image, SEEN)
        places = [(place, False) for place, window in candidates.items() if torch.equal(window, seen)]
        places += [(place, True) for place, window in candidates.items() if torch.equal(window.flip(1), seen)]
        assert len(places) == 1
        found += places
    assert len({place for place, _ in found}) > 10
    mirrored = sum(mirror for _, mirror in found)
    # 64 fair coins: 32 with a deviation of 4
    assert (16 < mirrored < 48) if flip else mirrored == 0


def test_padding_gives_room_to_crop():
    cropped, _ = augmentation(crop=STORED, padding=2)(IMAGES, 0, 0)
    for image, seen in zip(IMAGES, cropped, strict=True):
        padded = torch.nn.functional.pad(image, (0, 0, 2, 2, 2, 2))
        assert any(torch.equal(window, seen) for window in windows(padded, STORED).values())


def test_without_crop_the_centre_is_seen():
    still = Augmentation(AugmentationConfig(crop=False), COLOR, crop=SEEN, flip=False, seed=0)
    assert torch.equal(still(IMAGES, 0, 0)[0], center_crop(IMAGES, SEEN))
    assert not torch.equal(augmentation()(IMAGES, 0, 0)[0], center_crop(IMAGES, SEEN))


def test_draws_follow_from_seed_epoch_and_step_alone():
    def draw(seed, epoch, step, noise):
        torch.manual_seed(noise)
        return augmentation(seed=seed)(IMAGES, epoch, step)[0]

    assert torch.equal(draw(0, 1, 2, noise=3), draw(0, 1, 2, noise=4))
    others = [draw(1, 1, 2, 3), draw(0, 2, 2, 3), draw(0, 1, 3, 3), draw(0, 2, 1, 3)]
    assert not any(torch.equal(draw(0, 1, 2, 3), other) for other in others)


def test_the_colour_shift_is_the_papers():
    """Section 4.1: [p1, p2, p3][a1 l1, a2 l2, a3 l3]^T with a ~ N(0, 0.1), here in units of the deviation."""
    _, shift = augmentation(pca_color=0.1)(torch.zeros(20_000, STORED, STORED, 3, dtype=torch.uint8), 0, 0)
    vectors, values = np.array(COLOR.eigenvectors), np.array(COLOR.eigenvalues)
    expected = vectors @ np.diag((0.1 * values) ** 2) @ vectors.T / np.outer(COLOR.std, COLOR.std)
    # the error of a variance of 20,000 draws is 1 %
    np.testing.assert_allclose(np.cov(shift.numpy().T), expected, atol=0.05 * expected.max())
    assert augmentation(pca_color=0)(IMAGES, 0, 0)[1].abs().max() == 0


def test_normalize_and_undo():
    normalize = Normalize(COLOR)
    pixels = normalize(IMAGES)
    expected = (IMAGES.numpy() / 255 - np.array(COLOR.mean)) / np.array(COLOR.std)
    np.testing.assert_allclose(pixels.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert torch.equal(normalize.undo(pixels), IMAGES)
    shift = torch.tensor([[1.0, 2.0, 3.0]]).expand(NUM_IMAGES, 3)
    torch.testing.assert_close(normalize(IMAGES, shift) - pixels, shift[:, :, None, None].expand_as(pixels))
