import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from images import encode
from PIL import Image

from data.images.decode import Preprocessing, opened
from data.images.footprint import footprint
from data.images.work_blocks import icon_pixels

SPEC = Preprocessing(size=64, crop=56, max_pixels=50_000_000)
SIDE = 1600
COLOR = Image.new("RGB", (SIDE, SIDE), (200, 50, 0))
HALF = Image.fromarray(np.full((SIDE, SIDE, 4), 128, np.uint8))
FLOATS = Image.fromarray(np.full((SIDE, SIDE), 0.3, np.float32))
DEEP = Image.fromarray(np.full((SIDE, SIDE), 30_000, np.uint16))

FILES = {
    "PNG": encode(COLOR, "PNG"),
    "PNG, grey": encode(COLOR.convert("L"), "PNG"),
    "PNG, palette": encode(COLOR.quantize(16), "PNG"),
    "PNG, one colour of the palette transparent": encode(COLOR.quantize(16), "PNG", transparency=0),
    "PNG, one colour transparent": encode(COLOR, "PNG", transparency=(1, 2, 3)),
    "PNG, alpha": encode(HALF, "PNG"),
    "PNG, grey and alpha": encode(HALF.convert("LA"), "PNG"),
    "PNG, 16 bits": encode(DEEP, "PNG"),
    "PNG, 16 bits, one grey transparent": encode(DEEP, "PNG", transparency=7),
    "GIF": encode(COLOR, "GIF"),
    "BMP": encode(COLOR, "BMP"),
    "TIFF": encode(COLOR, "TIFF", compression="tiff_deflate"),
    "TIFF, floats": encode(FLOATS, "TIFF", compression="tiff_deflate"),
    "TIFF, CMYK in one strip": encode(
        COLOR.convert("CMYK"), "TIFF", compression="tiff_lzw", tiffinfo={278: SIDE}, strip_size=4 * SIDE * SIDE
    ),
    "WebP": encode(COLOR, "WEBP"),
    "WebP, alpha": encode(HALF, "WEBP", lossless=True),
    "JPEG": encode(COLOR, "JPEG"),
    "JPEG, progressive": encode(COLOR, "JPEG", progressive=True, subsampling=0),
    "JPEG 2000": encode(COLOR, "JPEG2000"),
    "JPEG 2000, alpha": encode(HALF, "JPEG2000"),
    "AVIF": encode(COLOR, "AVIF"),
    "AVIF, alpha": encode(HALF, "AVIF"),
}


def estimate(image: bytes, spec: Preprocessing = SPEC) -> int:
    with opened(image, spec.max_pixels) as picture:
        return footprint(picture, spec)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_an_image_takes_no_more_than_was_estimated(name, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(FILES[name])
    program = f"""
import sys
from pathlib import Path
from data.images.decode import decode, Preprocessing

def memory(kind):
    return 1024 * int(Path("/proc/self/status").read_text().split(kind)[1].split()[0])

spec = Preprocessing.model_validate_json({SPEC.model_dump_json()!r})
image = Path({str(path)!r}).read_bytes()
small = {encode(Image.new("RGB", (9, 9)), "PNG")!r}
decode(small, spec)
before = memory("VmRSS:")
decode(image, spec)
print(memory("VmHWM:") - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    taken, estimated = int(done.stdout), estimate(FILES[name])
    # A decoder's code, which is loaded with its first image, is 3 MB or so.
    assert taken < estimated + 4_000_000
    # Some of what a format may need, this image does not.
    assert estimated < 4 * taken + 8_000_000


def test_a_jpeg_that_is_read_smaller_takes_less():
    assert estimate(FILES["JPEG"]) < estimate(FILES["PNG"]) / 8
    large = SPEC.model_copy(update={"size": 1000})
    # For a moment, all pixels are there twice: as they were read, and as Pillow holds them.
    assert estimate(FILES["JPEG"], large) == estimate(FILES["PNG"], large) + 3 * SIDE**2


def icon(frame: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(frame), 22) + frame


@pytest.mark.parametrize(
    ("image", "pixels"),
    [
        pytest.param(encode(Image.new("RGB", (64, 64)), "ICO", sizes=[(64, 64), (32, 32)]), 64 * 64, id="as Pillow"),
        pytest.param(icon(encode(Image.new("RGB", (900, 700)), "PNG")), 900 * 700, id="a PNG that is larger than told"),
        pytest.param(icon(struct.pack("<Iii", 40, 3000, -4000)), 12_000_000, id="a bitmap from the top"),
        pytest.param(icon(b"")[:-16], 0, id="no entry"),
        pytest.param(icon(b"short"), 0, id="no frame"),
        pytest.param(struct.pack("<HHH", 0, 1, 60_000), 0, id="more entries than bytes"),
        pytest.param(b"\0\0\1\0", 0, id="half a head"),
        pytest.param(FILES["PNG"], 0, id="another format"),
    ],
)
def test_icons_are_looked_into(image, pixels):
    assert icon_pixels(image) == pixels
