"""The work that an image takes is counted before it is done; these tests count, and measure no time."""

import random
import struct
from contextlib import suppress

import pytest
from images import encode, noise
from PIL import Image, ImageFile

from benchmarks.attack import images
from benchmarks.attack.images import bombs, icon_of, png
from benchmarks.attack.jpegs import exif_of_fractions, jpeg_segments, progressive_scans
from benchmarks.attack.pictures import flat
from data.config import DataConfig
from data.images.budget import DEFAULT_SECONDS, Budget, OverBudgetError
from data.images.decode import BROKEN, DecodeError, Preprocessing, TooLargeError, decode
from data.images.work import count_opening
from serving.targets import TARGETS

SPEC = Preprocessing(size=64, crop=56, max_pixels=50_000_000)
EDGE = TARGETS["edge"].decoding_seconds
CHEAP = {
    *("JPEG, arithmetic", "PNG, 16 bits of transparent colours, interlaced", "PNG, interlaced", "PNG, a column"),
    *("PNG, a column, interlaced", "TIFF, Lab", "GIF, frames", "GIF, large", "icons", "PBM, bits", "WebP, frames"),
    *("WebP, large", "WebP, lossless", "AVIF, large"),
}
"""Bombs that go off within the limit: only their first frame is read, or every pixel of them once."""
SLOW_TO_MAKE = {"TIFF, LZMA", "JPEG 2000, large", "JPEG 2000, 16 bits"}
REFUSED = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_TO_MAKE else []) for name in sorted({*bombs()} - CHEAP)
]


def counted(image: bytes) -> float:
    budget = Budget(1e9)
    count_opening(image, budget)
    return budget.spent


@pytest.mark.parametrize("name", REFUSED)
def test_a_bomb_is_refused_before_it_is_decoded(name, monkeypatch):
    loads = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loads.append(self))
    bomb = bombs()[name]()
    assert len(bomb) < 6_000_000
    with pytest.raises(TooLargeError, match=r"^reading it may take more than 1 s of processor time, the limit \(.+\)$"):
        decode(bomb, SPEC, EDGE)
    assert loads == []


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_what_is_within_the_limit_is_read(name):
    decode(bombs()[name](), SPEC, EDGE)


def test_each_scan_of_a_jpeg_is_counted():
    start = counted(progressive_scans(800, 600, 0))
    one, ten, hundred = (counted(progressive_scans(800, 600, scans)) - start for scans in (1, 10, 100))
    assert ten == pytest.approx(10 * one, rel=0.01)
    assert hundred == pytest.approx(100 * one, rel=0.01)
    # The last scan of Pillow's refines the brightness, a block for each 8 x 8 pixels.
    assert counted(progressive_scans(1600, 1200, 100)) - counted(progressive_scans(1600, 1200, 0)) > 3 * hundred


def test_a_scan_bomb_among_data_is_rejected_too_and_says_why():
    with pytest.raises(TooLargeError, match=r"more than 30 s of processor time, the limit \([\d,]+ scans of a JPEG"):
        decode(progressive_scans(), SPEC)


def enlarged(jpeg: bytes, width: int, height: int) -> bytes:
    """The same file, whose head says another size."""
    start = min(jpeg.find(marker) for marker in (b"\xff\xc0\x00\x11", b"\xff\xc2\x00\x11") if marker in jpeg) + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


@pytest.mark.parametrize(("width", "height"), [(8000, 6200), (50_000, 1000)])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_photograph_of_50_million_pixels_is_not_rejected(width, height, progressive):
    # Ten scans, as libjpeg and cameras write them, and 30 MB of data.
    image = enlarged(encode(flat(80, 60), "JPEG", progressive=progressive, subsampling=0), width, height)
    assert counted(image + bytes(30_000_000)) < DEFAULT_SECONDS / 2
    assert DataConfig().max_decoding_seconds == DEFAULT_SECONDS


def test_a_plain_photograph_of_50_million_pixels_is_read_at_the_edge():
    image = enlarged(encode(flat(80, 60), "JPEG"), 8000, 6200)
    assert counted(image + bytes(6_000_000 - len(image))) < EDGE


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("AVIF", {"speed": 10}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG2000", {}),
        ("BMP", {}),
        ("PPM", {}),
    ],
)
def test_an_ordinary_image_takes_a_part_of_the_budget(kind, options):
    decode(encode(noise(700, 500), kind, **options), SPEC, 0.8 * EDGE)


def test_segments_of_a_camera_are_no_bomb():
    profile = b"\xff\xe2\xff\xff" + bytes(65_533)
    assert counted(jpeg_segments(profile, 3_000_000)) < 0.2 * EDGE


def test_frames_after_the_first_are_not_looked_at():
    few, many = images.gif_frames(2), images.gif_frames(100_000)
    assert counted(many) == pytest.approx(counted(few))


def test_an_icon_counts_the_image_within():
    plain = encode(flat(64, 64), "PNG")
    assert counted(icon_of(plain)) > counted(plain)
    with pytest.raises(TooLargeError, match="pixels of an icon"):
        decode(icon_of(png(60_000, 60_000, data=b"")), SPEC)


SEEDS = {
    "JPEG": encode(noise(24, 18), "JPEG", progressive=True),
    "PNG": png(8, 8, before=images.chunk(b"zTXt", bytes(20)) + images.chunk(b"eXIf", exif_of_fractions(400))),
    "GIF": images.gif(b"!\xfe\1x\0"),
    "TIFF": images.tiff(8, 8, strip=bytes(64), strips=2, rows=4),
    "TIFF of JPEG": encode(noise(24, 18), "TIFF", compression="jpeg"),
    "icon": icon_of(png(8, 8)),
    "PPM": b"P2 #c\n 2 2 255\n1 2 3 4 #d\n",
    "BMP": images.bmp_lines(9, 3),
    "AVIF": encode(noise(24, 18), "AVIF", speed=10),
    "JPEG 2000": encode(noise(24, 18), "JPEG2000", tile_size=(16, 16), no_jp2=True),
}


@pytest.mark.parametrize("kind", SEEDS)
def test_counting_survives_damage(kind):
    seed, draw = SEEDS[kind], random.Random(kind)
    for _ in range(300):
        image = bytearray(seed)
        for _ in range(draw.randint(1, 4)):
            start = draw.randrange(len(image))
            image[start : start + draw.randint(1, 4)] = draw.choice((b"\0", b"\xff", b"\x80\0", draw.randbytes(3)))
        image = image[: draw.randint(1, len(image))]
        with suppress(OverBudgetError, *BROKEN):
            count_opening(bytes(image), Budget(1))
        with suppress(DecodeError):
            decode(bytes(image), SPEC, EDGE)


def test_a_header_in_circles_ends():
    image = bytearray(SEEDS["JPEG 2000"])
    tile = image.index(b"\xff\x90")
    image[tile + 6 : tile + 10] = (14).to_bytes(4, "big")
    image[tile + 12 : tile + 12] = b"\xff\x64\x00\x04\0\0"
    with suppress(DecodeError):
        decode(bytes(image), SPEC, EDGE)


def test_images_that_pillow_knows_by_other_bytes_are_counted_too():
    picture = Image.new("L", (64, 64))
    assert decode(encode(picture, "TGA"), SPEC, EDGE).shape == (56, 56, 3)
