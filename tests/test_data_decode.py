import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data.decode import DecodeError, Preprocessing, TooLargeError, decode

SPEC = Preprocessing(size=16, crop=16, max_pixels=1_000_000)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width=16, height=16, mode="RGB"):
    channels = {"RGB": (3,), "RGBA": (4,), "L": (), "LA": (2,)}[mode]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8))


def test_an_image_of_the_size_is_not_changed():
    assert np.array_equal(decode(encode(noise()), SPEC), np.asarray(noise()))


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 41), (33, 33), (7, 9)])
def test_shorter_side_then_centre(width, height):
    plain = ImageOps.fit(noise(width, height), (16, 16), Image.Resampling.BILINEAR)
    found = decode(encode(noise(width, height)), SPEC)
    # The centre of an odd number of pixels may lie half a stored pixel beside that of the peer.
    assert found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - np.asarray(plain)).mean() < 25


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 41), (33, 33), (100, 16), (16, 16)])
@pytest.mark.parametrize("crop", [12, 13])
def test_cropping_here_is_cropping_what_is_stored(width, height, crop):
    stored = decode(encode(noise(width, height)), SPEC)
    served = decode(encode(noise(width, height)), SPEC.model_copy(update={"crop": crop}))
    start = (16 - crop) // 2
    assert np.array_equal(served, stored[start : start + crop, start : start + crop])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = encode(noise(), exif=exif)
    with Image.open(io.BytesIO(turned)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(turned, SPEC), upright)


def test_transparency_is_laid_over_white():
    image = noise(mode="RGBA")
    white = Image.new("RGBA", image.size, "white")
    expected = np.asarray(Image.alpha_composite(white, image).convert("RGB")).astype(int)
    # two ways to round
    assert np.abs(decode(encode(image), SPEC) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK"])
def test_modes(mode):
    image = noise(mode="LA") if mode == "LA" else noise().convert(mode)
    pixels = decode(encode(image, "TIFF" if mode == "CMYK" else "PNG"), SPEC)
    assert pixels.shape == (16, 16, 3)
    if mode in ("L", "1", "P", "CMYK"):
        assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_sixteen_bits_are_scaled():
    samples = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    assert np.array_equal(decode(encode(Image.fromarray(samples)), SPEC)[..., 0], samples >> 8)


def test_the_first_frame_stands_for_an_animation():
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    pixels = decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), SPEC)
    assert pixels[0, 0].tolist() == [255, 0, 0]


def test_too_many_pixels_are_refused_before_decoding():
    huge = encode(Image.new("1", (30_000, 30_000)))
    assert len(huge) < 200_000
    with pytest.raises(TooLargeError, match="1,000,000"):
        decode(huge, SPEC)


@pytest.mark.parametrize(
    "image", [b"", b"hello", encode(noise())[:50], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_is_told(image):
    with pytest.raises(DecodeError):
        decode(image, SPEC)


ENCODED = [encode(noise(64, 48), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")]


@given(st.sampled_from(ENCODED), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.floats(0, 1))
def test_no_bytes_raise_anything_else(image, changes, cut):
    damaged = bytearray(image)
    for place, value in changes:
        damaged[int(place * (len(damaged) - 1))] = value
    with contextlib.suppress(DecodeError):
        assert decode(bytes(damaged[: int(cut * len(damaged))]), SPEC).shape == (16, 16, 3)


def test_the_hash_names_the_preprocessing():
    assert SPEC.hash == Preprocessing(size=16, crop=16, max_pixels=1_000_000).hash
    assert SPEC.hash != SPEC.model_copy(update={"crop": 15}).hash
