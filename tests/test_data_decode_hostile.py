import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encode, noise, ppm
from PIL import Image, ImageFile

from data.images.decode import DecodeError, Preprocessing, TooLargeError, decode


def decoded(image, size=8, crop=8, max_pixels=50_000_000):
    return decode(image, Preprocessing(size=size, crop=crop, max_pixels=max_pixels))


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(bytes(100))), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 5_001), (2**31 - 1, 2**31 - 1)])
def test_the_limit_is_looked_at_before_decoding(monkeypatch, width, height):
    loads = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loads.append(self))
    with pytest.raises(TooLargeError, match="50,000,000"):
        decoded(png_of(width, height))
    assert loads == []


def test_the_limit_itself_is_allowed():
    image = ppm(noise(10, 10))
    assert decoded(image, max_pixels=100).shape == (8, 8, 3)
    with pytest.raises(TooLargeError, match=r"^10x10 pixels, more than 99 allowed$"):
        decoded(image, max_pixels=99)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "content", [b"", b"x", b"not an image\n" * 99, bytes(999), EPS, b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image(content):
    with pytest.raises(DecodeError, match=r"^(not an image|broken image: .+)$"):
        decoded(content)


ENCODED = {
    "JPEG": encode(noise(24, 18), "JPEG"),
    "PNG": encode(noise(24, 18), "PNG"),
    "WEBP": encode(noise(24, 18), "WEBP"),
    "TIFF": encode(noise(24, 18), "TIFF", compression="tiff_lzw"),
    "GIF": encode(noise(24, 18), "GIF"),
}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_broken(file_format, share):
    image = ENCODED[file_format]
    with pytest.raises(DecodeError) as error:
        decoded(image[: int(len(image) * share)])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(ENCODED)),
    st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=8)), max_size=4),
    st.floats(0.05, 1),
)
def test_a_damaged_image_is_an_image_or_a_decode_error(file_format, edits, share):
    image = bytearray(ENCODED[file_format])
    for position, content in edits:
        start = position % len(image)
        image[start : start + len(content)] = content
    shape = (12, 12, 3)
    with suppress(DecodeError):
        shape = decoded(bytes(image[: int(len(image) * share)]), 16, 12).shape
    assert shape == (12, 12, 3)


def test_pillows_warnings_are_silent_in_every_thread_and_others_are_not():
    # 100 million pixels are more than Pillow likes, and it says so while opening.
    big, small = png_of(10_000, 10_000), ppm(noise(8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Warning, match="could be decompression bomb"):
            Image.open(io.BytesIO(big))

        def use(index):
            if index % 2:
                return decoded(small).shape
            with pytest.raises(TooLargeError):
                decoded(big)
            return None

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(use, range(64))) == [None, (8, 8, 3)] * 32
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn("ours", UserWarning, stacklevel=1)
