import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import encode, noise
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from data.images.decode import Preprocessing, decode
from data.quality.perceptual_hash import MAX_BITS, connected, look_alike, near_groups, near_pairs, reduced
from data.quality.traits import TRAITS, decode_and_describe, perceptual_hashes, shrink

SPEC = Preprocessing(size=64, crop=64, max_pixels=10**6)


def photo(seed):
    return Image.fromarray(noise(16, 12, seed)).resize((160, 120), Image.Resampling.BICUBIC)


def pixels(image, file_format="PNG", **options):
    return decode(encode(image, file_format, **options), SPEC)


def bits_between(one, other):
    return (hash_of(one) ^ hash_of(other)).bit_count()


def hash_of(prepared):
    return perceptual_hashes(prepared[None])[0]


def are_alike(one, other):
    return look_alike(*reduced(np.stack([one, other])))


COPIES = {
    "scaled": lambda image: pixels(image.resize((100, 75), Image.Resampling.LANCZOS)),
    "compressed": lambda image: pixels(image, "JPEG", quality=50),
    "brighter": lambda image: pixels(image.point(lambda level: 25 + 0.9 * level)),
    "less contrast": lambda image: pixels(ImageEnhance.Contrast(image).enhance(0.75)),
    "WebP": lambda image: pixels(image, "WEBP", quality=60),
}


@pytest.mark.parametrize("change", COPIES)
def test_copies_of_photographs_are_recognized(change):
    for seed in range(10):
        original, copy = pixels(photo(seed)), COPIES[change](photo(seed))
        assert bits_between(original, copy) <= MAX_BITS
        assert are_alike(original, copy)


def test_other_photographs_are_not():
    originals = [pixels(photo(seed)) for seed in range(40)]
    assert not any(are_alike(one, other) for one, other in combinations(originals, 2))
    # Two random hashes of 64 bits are within 6 of each other once in 2**64 / (C(64,0) + ... + C(64,6)), 2e11 times.
    assert min(bits_between(one, other) for one, other in combinations(originals, 2)) > MAX_BITS


def test_uniform_images_are_compared_by_their_colour():
    def uniform(*color):
        return np.full((64, 64, 3), color, dtype=np.uint8)

    assert are_alike(uniform(200, 200, 200), uniform(202, 201, 200))
    assert not are_alike(uniform(0, 0, 0), uniform(255, 255, 255))
    assert not are_alike(uniform(200, 0, 0), uniform(0, 0, 200))
    assert not are_alike(uniform(9, 9, 9), pixels(photo(0)))


def test_a_hash_is_half_ones():
    """The median of 63 frequencies is one of them, and the sum of all is above it: 31 others and this one."""
    for seed in range(5):
        assert hash_of(pixels(photo(seed))).bit_count() == 32


def test_a_hash_is_that_of_the_cosine_transform():
    """Computed there in whole numbers, for the same bits on every machine; scipy's cosines are not rounded."""
    for seed in range(5):
        image = pixels(photo(seed))
        grey = np.asarray(Image.fromarray(image).reduce(2).convert("L"), dtype=float)
        frequencies = dctn(grey, norm=None)[:8, :8].ravel()
        bits = "".join("1" if value > np.median(frequencies[1:]) else "0" for value in frequencies)
        assert abs(int(bits, 2) ^ hash_of(image)).bit_count() <= 1


@pytest.mark.parametrize("max_bits", [0, 1, 3, MAX_BITS])
def test_pairs_are_those_of_comparing_each_with_each(max_bits):
    rng = np.random.default_rng(max_bits)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, count, replace=False)) for count in rng.integers(0, 10, 200)]
    hashes = np.concatenate([hashes, hashes[:200] ^ np.array(flips, dtype=np.uint64)])
    rng.shuffle(hashes)
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = {(one, other) for one, other in np.argwhere(distances <= max_bits).tolist() if one < other}
    found = set(map(tuple, near_pairs(hashes, max_bits).tolist()))
    assert found <= expected
    assert len(found) > 10
    # Of equal hashes, each is paired with the first, which stands for them; so the groups are the same.
    assert connected(np.array(sorted(found))) == connected(np.array(sorted(expected)))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.integers(0, 63))
def test_any_list_of_hashes_can_be_searched(values, bit):
    hashes = np.array([*values, *(value ^ (1 << bit) for value in values)], dtype=np.uint64)
    groups = connected(near_pairs(hashes))
    assert all(any({index, index + len(values)} <= set(group) for group in groups) for index in range(len(values)))


def test_a_hundred_thousand_hashes_are_searched_in_seconds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    hashes[-500:] = hashes[:500] ^ np.uint64(0b1011 << 30)
    start = time.perf_counter()
    pairs = near_pairs(hashes)
    seconds = time.perf_counter() - start
    assert {(index, 99_500 + index) for index in range(500)} <= set(map(tuple, pairs.tolist()))
    assert seconds < 30  # 0.9 s on one core of 2025; comparing each with each would take 5e9 steps


def test_many_equal_hashes_do_not_explode():
    """Blank scans: one hash for all."""
    pairs = near_pairs(np.zeros(50_000, dtype=np.uint64))
    np.testing.assert_array_equal(pairs, np.stack([np.zeros(49_999, dtype=int), np.arange(1, 50_000)], axis=1))


def test_pairs_are_joined_to_groups():
    assert connected(np.array([(3, 7), (1, 2), (7, 5), (2, 0)])) == [[0, 1, 2], [3, 5, 7]]
    assert connected(np.empty((0, 2), dtype=np.int64)) == []


def test_groups_are_confirmed_by_their_pixels():
    blank, copy = np.zeros((64, 64, 3), np.uint8), COPIES["scaled"](photo(0))
    images = np.stack([pixels(photo(0)), blank, copy, pixels(photo(1))])
    same_hash = np.array([7, 7, 7, 6], dtype=np.uint64)
    assert near_groups(same_hash, lambda indices: images[indices]) == ([[0, 2]], 0)
    assert near_groups(same_hash[:0], lambda indices: images[indices]) == ([], 0)


def test_what_is_noted_is_that_of_the_file():
    content = encode(photo(0).quantize(16), "PNG")
    described = decode_and_describe(content, SPEC)
    np.testing.assert_array_equal(np.asarray(described.square), decode(content, SPEC))
    assert (described.width, described.height, described.traits) == (160, 120, ("palette",))
    assert set(described.traits) <= set(TRAITS)


def test_a_broken_second_frame_does_not_matter():
    content = encode(photo(0), "GIF", save_all=True, append_images=[photo(1), photo(2)])
    still = encode(photo(0), "GIF")
    broken, whole = (decode_and_describe(some, SPEC) for some in (content[: len(still) + 40], content))
    assert "palette" in broken.traits
    assert whole.traits == ("palette", "animation")


@pytest.mark.parametrize("size", [8, 50, 64])
def test_images_are_hashed_as_each_by_itself(size):
    images = np.stack([noise(size, size, seed) for seed in range(5)])
    assert perceptual_hashes(images) == [perceptual_hashes(image[None])[0] for image in images]


@pytest.mark.parametrize("size", [4, 24, 48, 272])
def test_images_are_shrunk_by_averaging(size):
    images = np.stack([noise(size, size, seed) for seed in range(3)])
    expected = [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX)) for image in images]
    np.testing.assert_allclose(shrink(images, 16), np.stack(expected), atol=1)


@pytest.mark.parametrize("size", [16, 48, 256])
def test_averages_are_exact(size):
    images = np.stack([noise(size, size, 0), np.full((size, size, 3), 255, dtype=np.uint8)])
    squares = images.reshape(2, 16, size // 16, 16, size // 16, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(shrink(images, 16), squares, rtol=1e-6)
    weights = np.array([0.25, 0.5, 0.25], dtype=np.float32)
    np.testing.assert_allclose(shrink(images, 16, weights[:, None])[..., 0], squares @ weights, rtol=1e-6)
