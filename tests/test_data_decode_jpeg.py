"""JPEGs as simplejpeg reads them, against Pillow, which reads whatever simplejpeg refuses."""

import io

import numpy as np
import pytest
import simplejpeg
from images import encode, noise
from PIL import Image, ImageFile

from benchmarks.made_photos import make_photo
from data.images.decode import Preprocessing, decode

PHOTO = make_photo(np.random.default_rng(0), 341, 256)


def decoded(jpeg, size):
    return decode(jpeg, Preprocessing(size=size, crop=size, max_pixels=50_000_000))


def by_pillow(jpeg, size):
    def refuse(*_, **__):
        raise ValueError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simplejpeg, "decode_jpeg", refuse)
        return decoded(jpeg, size)


@pytest.fixture
def loaded(monkeypatch):
    """Images that Pillow has read, in order."""
    images, load = [], ImageFile.ImageFile.load

    def noted(self):
        if self.tile:
            images.append(self)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", noted)
    return images


@pytest.mark.parametrize("size", [128, 64, 32, 8])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"restart_marker_blocks": 3}],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
def test_pixels_are_pillows_to_the_last_bit(loaded, size, options):
    with Image.open(io.BytesIO(PHOTO)) as photo:
        jpeg = encode(photo, "JPEG", **options)
    loaded.clear()
    pixels = decoded(jpeg, size)
    assert loaded == []
    np.testing.assert_array_equal(pixels, by_pillow(jpeg, size))
    assert len(loaded) == 1


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 40), (40, 1), (17, 9), (131, 133), (1000, 34)])
def test_odd_sizes(width, height):
    jpeg = encode(noise(width, height), "JPEG")
    for size in (8, 16, 32):
        np.testing.assert_array_equal(decoded(jpeg, size), by_pillow(jpeg, size))


def test_what_simplejpeg_refuses_is_read_by_pillow(loaded):
    """Bytes between two markers, at which libjpeg shakes its head and reads on."""
    start = PHOTO.index(b"\xff\xda")
    jpeg = PHOTO[:start] + b"\0\0\0" + PHOTO[start:]
    with pytest.raises(ValueError, match="extraneous bytes"):
        simplejpeg.decode_jpeg(jpeg)
    np.testing.assert_array_equal(decoded(jpeg, 64), decoded(PHOTO, 64))
    assert len(loaded) == 1


@pytest.mark.parametrize("size", [(340, 256), (341, 255), (682, 512), (3, 3)])
def test_a_size_other_than_pillows_is_not_taken(monkeypatch, loaded, size):
    """As of a file with two headers; a larger one must not be written past what was made for it."""
    other = make_photo(np.random.default_rng(1), *size)
    read = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda _, **options: read(other, **options))
    pixels = decoded(PHOTO, 100)
    assert len(loaded) == 1
    np.testing.assert_array_equal(pixels, by_pillow(PHOTO, 100))
