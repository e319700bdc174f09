"""JPEGs decoded at a reduced scale, against the same pixels decoded in full: a PNG of them is never reduced."""

import io

import numpy as np
import pytest
from images import encode, noise
from PIL import Image

from benchmarks.made_photos import make_photo
from data.config import DataConfig
from data.images.decode import DecodeError, Preprocessing, TooLargeError, decode
from data.quality.thumbnails import SIDE, _draw
from data.quality.traits import decode_and_describe

SIZE = 32
LIMIT = 50_000_000


def decoded(image, size=SIZE):
    return decode(image, Preprocessing(size=size, crop=size, max_pixels=LIMIT)).astype(int)


def in_full(jpeg, size=SIZE):
    with Image.open(io.BytesIO(jpeg)) as picture:
        return decoded(encode(picture, "PNG", exif=picture.getexif()), size)


@pytest.mark.parametrize(("width", "height"), [(171, 128), (341, 256), (512, 683), (683, 512), (900, 701)])
def test_a_photograph_is_nearly_what_it_is_when_decoded_in_full(width, height):
    rng = np.random.default_rng(0)
    photos = [make_photo(rng, width, height) for _ in range(3)]
    differences = np.array([decoded(photo) - in_full(photo) for photo in photos])
    assert 0 < np.abs(differences).mean() < 1.5
    assert np.abs(differences).max() <= 17


def test_what_is_smaller_is_the_same_to_the_last_bit():
    rng = np.random.default_rng(0)
    for width, height in ((127, 4 * SIZE - 1), (300, 127), (40, 30), (65, 1000), (1, 1), (2000, 1)):
        jpeg = encode(noise(width, height), "JPEG", quality=90)
        np.testing.assert_array_equal(decoded(jpeg), in_full(jpeg))
    assert (decoded(photo := make_photo(rng, 170, 4 * SIZE)) != in_full(photo)).any()


def ramp(width, height):
    """Levels that rise along both sides, so that a shift by a part of a pixel shows in the mean."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    return np.dstack([across % 256, down % 256, (across + down) % 256]).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(249, 129), (131, 255), (254, 135), (133, 133)])
def test_the_same_part_is_kept(width, height, orientation):
    """The reduced sides are rounded up: a fourth of 129 pixels are 33, of which the last is one in four."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = encode(ramp(width, height), "JPEG", quality=100, subsampling=0, exif=exif)
    for size in (16, 32):
        difference = decoded(jpeg, size) - in_full(jpeg, size)
        inner = difference[2:-2, 2:-2]
        assert np.abs(inner.mean(axis=(0, 1))).max() < 0.1
        assert np.abs(np.median(difference, axis=(0, 1))).max() == 0


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_every_kind_of_jpeg(mode, options):
    photo = Image.open(io.BytesIO(make_photo(np.random.default_rng(1), 512, 384))).convert(mode)
    jpeg = encode(photo, "JPEG", **({} if mode == "L" else options))
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert picture.mode == mode
        full = decoded(encode(picture.convert("RGB"), "PNG"))
    assert 0 < np.abs(decoded(jpeg) - full).mean() < 1.5


def test_what_telephones_write():
    rng = np.random.default_rng(2)
    first, second = (Image.open(io.BytesIO(make_photo(rng, 512, 384))) for _ in range(2))
    pictures = encode(first, "MPO", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(pictures)) as picture:
        assert picture.format == "MPO"
    assert 0 < np.abs(decoded(pictures) - in_full(pictures)).mean() < 1.5


def test_facts_and_the_limit_are_those_of_the_original():
    jpeg = make_photo(np.random.default_rng(0), 683, 512)
    described = decode_and_describe(jpeg, Preprocessing(size=16, crop=16, max_pixels=683 * 512))
    assert (described.width, described.height) == (683, 512)
    np.testing.assert_array_equal(np.asarray(described.square), decoded(jpeg, 16))
    with pytest.raises(TooLargeError, match=r"^683x512 pixels, more than 349,695 allowed$"):
        decode(jpeg, Preprocessing(size=16, crop=16, max_pixels=683 * 512 - 1))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_one_is_broken(share):
    jpeg = make_photo(np.random.default_rng(0), 683, 512)
    with pytest.raises(DecodeError, match="truncated"):
        decoded(jpeg[: int(share * len(jpeg))])


@pytest.mark.parametrize("orientation", [1, 6])
def test_thumbnails_are_reduced_too(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.open(io.BytesIO(make_photo(np.random.default_rng(0), 683, 301)))
    jpeg = encode(photo, "JPEG", exif=exif)
    with Image.open(io.BytesIO(jpeg)) as picture:
        full = _draw(encode(picture, "PNG", exif=exif), DataConfig())
    seen = _draw(jpeg, DataConfig())
    assert seen.shape == (SIDE, SIDE, 3)
    assert 0 < np.abs(seen.astype(int) - full).mean() < 1
    # 301 / 683 of 64 pixels are 28, and 36 are white.
    lengthways = 1 if orientation == 1 else 0
    assert (seen == 255).all(axis=(lengthways, 2)).sum() == 36
