import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encode, noise, ppm, reference
from PIL import Image, ImageOps

from data.images.decode import FORMATS, Preprocessing, decode


def decoded(image, size=8, crop=None):
    return decode(image, Preprocessing(size=size, crop=crop or size, max_pixels=50_000_000))


# Resizing to the size that an image has changes nothing.
def as_it_is(image):
    return decoded(image, size=8)


@pytest.mark.parametrize(("width", "height"), [(8, 8), (16, 16), (37, 37), (8, 24), (25, 8)])
def test_pixels_are_pillows_where_one_step_does_all(width, height):
    pixels = noise(width, height)
    np.testing.assert_array_equal(decoded(ppm(pixels)), reference(Image.fromarray(pixels), 8))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(8, 64), st.integers(0, 9))
def test_pixels_are_pillows_up_to_rounding(width, height, size, seed):
    # Pillow takes the corners of a box in single precision and orders its two passes by their cost: a sum may round to
    # the other neighbour.
    pixels = noise(width, height, seed)
    seen, expected = decoded(ppm(pixels), size), reference(Image.fromarray(pixels), size)
    assert (seen.shape, seen.dtype) == ((size, size, 3), np.uint8)
    assert np.abs(seen.astype(int) - expected).max() <= 1


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.data())
def test_a_stored_image_cropped_again_is_what_the_endpoint_sees(width, height, size, data):
    crop = data.draw(st.integers(1, size))
    image = ppm(noise(width, height))
    start = (size - crop) // 2
    stored = decoded(image, size)
    np.testing.assert_array_equal(decoded(image, size, crop), stored[start : start + crop, start : start + crop])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (2, 3), (65_000, 1)])
def test_extreme_shapes(width, height):
    pixels = np.broadcast_to(np.array([10, 200, 30], dtype=np.uint8), (height, width, 3))
    seen = decoded(ppm(pixels), 32, 28)
    np.testing.assert_array_equal(seen, np.broadcast_to(np.array([10, 200, 30]), (28, 28, 3)))


def test_the_centre_of_a_long_image_is_kept():
    columns = np.zeros((8, 800, 3), dtype=np.uint8)
    columns[:, 396:404] = 255
    np.testing.assert_array_equal(as_it_is(ppm(columns)), np.full((8, 8, 3), 255))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = encode(noise(24, 8), file_format, exif=exif, **({"lossless": True} if file_format == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
    np.testing.assert_array_equal(decoded(image), reference(upright, 8))
    assert upright.size == ((8, 24) if orientation > 4 else (24, 8))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0"]
)
def test_broken_metadata_does_not_cost_the_image(exif):
    image = noise(8, 8)
    for file_format in ("PNG", "WEBP"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        np.testing.assert_array_equal(as_it_is(encode(image, file_format, exif=exif, **options)), image)


def over_white(colors, alpha):
    alpha = alpha.astype(float)[..., None] / 255
    return np.round(colors * alpha + 255 * (1 - alpha))


def test_transparency_is_laid_over_white():
    colors, alpha = noise(8, 8), noise(8, 8, 1)[..., 0]
    rgba = Image.fromarray(np.dstack([colors, alpha]))
    np.testing.assert_array_equal(as_it_is(encode(rgba, "PNG")), over_white(colors, alpha))
    grey = Image.fromarray(colors[..., 0])
    grey.putalpha(Image.fromarray(alpha))
    assert grey.mode == "LA"
    np.testing.assert_array_equal(as_it_is(encode(grey, "PNG")), over_white(np.repeat(colors[..., :1], 3, 2), alpha))


def test_a_palette_with_a_transparent_entry():
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 4
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], dtype=np.uint8)
    palette = Image.new("P", (8, 8))
    palette.putdata(indices.ravel().tolist())
    palette.putpalette(colors.ravel().tolist())
    for file_format in ("PNG", "GIF"):
        expected = colors[indices]
        np.testing.assert_array_equal(as_it_is(encode(palette, file_format)), expected)
        expected[indices == 2] = 255
        np.testing.assert_array_equal(as_it_is(encode(palette, file_format, transparency=2)), expected)
    # PNG has an alpha of 8 bits for every entry.
    translucent = encode(palette, "PNG", transparency=bytes([255, 128, 0, 51]))
    alpha = np.array([255, 128, 0, 51], dtype=np.uint8)[indices]
    np.testing.assert_array_equal(as_it_is(translucent), over_white(colors[indices], alpha))


def test_grey_and_one_bit():
    grey = noise(8, 8)[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(as_it_is(encode(grey, "PNG")), expected)
    bits = Image.fromarray(grey > 127)
    assert bits.mode == "1"
    np.testing.assert_array_equal(as_it_is(encode(bits, "PNG")), np.where(expected > 127, 255, 0))


def test_cmyk():
    channels = [*np.moveaxis(noise(8, 8), 2, 0), noise(8, 8, 1)[..., 0]]
    inks = Image.merge("CMYK", [Image.fromarray(np.ascontiguousarray(channel)) for channel in channels])
    seen = as_it_is(encode(inks, "TIFF"))
    values = np.asarray(inks).astype(int)
    # Each ink takes light away, and black takes some of what is left: (255 - ink)(255 - black) / 255.
    expected = (255 - values[..., :3]) * (255 - values[..., 3:]) / 255
    np.testing.assert_allclose(seen, expected, atol=1)


def test_sixteen_bits_keep_the_upper_eight():
    samples = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    samples[0, :4] = [0, 255, 256, 65535]
    expected = np.repeat((samples >> 8)[..., None], 3, axis=2)
    for file_format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(as_it_is(encode(samples, file_format)), expected)
    big_endian = b"P5 8 8 65535\n" + samples.astype(">u2").tobytes()  # 32 bits a sample, when Pillow has read it
    assert Image.open(io.BytesIO(big_endian)).mode == "I"
    np.testing.assert_array_equal(as_it_is(big_endian), expected)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_transparent_level_of_sixteen_bits():
    samples = np.full((8, 8), 0x1234, dtype=np.uint16)
    samples[:, 4:] = 0x12FF  # the same upper byte
    plain = encode(samples, "PNG")
    position = plain.index(b"IDAT") - 4
    image = plain[:position] + png_chunk(b"tRNS", struct.pack(">H", 0x1234)) + plain[position:]
    seen = as_it_is(image)
    np.testing.assert_array_equal(seen[:, :4], 255)
    np.testing.assert_array_equal(seen[:, 4:], 0x12)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([0, 0.5, 1]), [0, 127, 255]),
        (np.array([0, 100.9, 255]), [0, 100, 255]),
        (np.array([-5, 256, 65535]), [0, 1, 255]),
        (np.array([0, 1e6, 4e6]), [0, 64, 255]),
        (np.array([np.nan, np.inf, 0.5]), [0, 255, 127]),
        (np.array([0, 0, 0]), [0, 0, 0]),
    ],
)
def test_floating_point_samples_bring_their_range(samples, expected):
    image = Image.fromarray(np.repeat(np.repeat(samples, 3)[None, :8], 8, axis=0).astype(np.float32))
    assert image.mode == "F"
    seen = as_it_is(encode(image, "TIFF"))
    np.testing.assert_array_equal(seen[0, [0, 3, 6], 0], expected)


def test_whole_numbers_of_32_bits():
    samples = np.full((8, 8), 200, dtype=np.int32)
    assert (as_it_is(encode(Image.fromarray(samples), "TIFF")) == 200).all()
    assert (as_it_is(encode(Image.fromarray(samples * 256), "TIFF")) == 200).all()


def test_an_animation_is_its_first_frame():
    frames = [Image.fromarray(noise(8, 8, seed)).quantize(16) for seed in range(3)]
    animation = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert Image.open(io.BytesIO(animation)).n_frames == 3
    np.testing.assert_array_equal(as_it_is(animation), np.asarray(frames[0].convert("RGB")))
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    animation = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(animation)).n_frames == 3
    np.testing.assert_array_equal(as_it_is(animation), noise(8, 8, 0))


def test_what_telephones_write():
    """A JPEG with more pictures behind it, which Pillow calls MPO and finds by looking at JPEG."""
    first, second = Image.fromarray(noise(8, 8)), Image.fromarray(noise(8, 8, 1))
    pictures = encode(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(pictures)).format == "MPO"
    np.testing.assert_array_equal(as_it_is(pictures), np.asarray(Image.open(io.BytesIO(pictures))))


@pytest.mark.parametrize("file_format", FORMATS)
def test_all_formats_are_read(file_format):
    """A name that Pillow does not know would make every image after it a broken one."""
    if file_format == "AVIF":
        pytest.importorskip("PIL._avif")
    image = Image.fromarray(np.full((16, 16, 3), 100, dtype=np.uint8))
    seen = as_it_is(encode(image, file_format))
    np.testing.assert_allclose(seen, 100, atol=3)  # some lose a little


def test_the_name_of_a_preprocessing_follows_from_its_values():
    spec = Preprocessing(size=32, crop=28, max_pixels=100)
    assert spec.hash == Preprocessing(max_pixels=100, crop=28, size=32).hash
    others = [spec.model_copy(update={name: value}) for name, value in (("size", 33), ("crop", 27), ("max_pixels", 99))]
    assert len({spec.hash, *(other.hash for other in others)}) == 4
