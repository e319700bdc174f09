"""Image bombs: small files that are slow to decode. Each file has at most 6 MB, and a valid beginning."""

import struct
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from benchmarks.attack.jpegs import JPEGS, exif_of_fractions, repeat_last_scan
from benchmarks.attack.pictures import FULL, encode, flat, noise

Bomb = Callable[[], bytes]


def bombs() -> Mapping[str, Bomb]:
    """Return all bombs by name. A call makes a bomb, in at most a second."""
    return {**JPEGS, **_PNG, **_TIFF, **_OTHERS}


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """Make a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, *, depth: int = 8, color: int = 2, interlaced: bool = False,
    before: bytes = b"", data: bytes | None = None, after: bytes = b"", filtered: int = 0,
) -> bytes:  # fmt: skip
    """Make a PNG of zeros, or with `data` instead of its IDAT chunks, with chunks before and after them."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    if data is None:
        row = bytes([filtered]) + bytes((width * depth * channels + 7) // 8)
        coder = zlib.compressobj(9)
        # The passes of an interlaced image have more rows, each with a filter byte.
        content = b"".join(coder.compress(row * 64) for _ in range(height // 64 + 2))
        data = chunk(b"IDAT", content + coder.flush())
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + after + chunk(b"IEND")


def png_text(kind: bytes = b"iTXt", count: int = 5000) -> bytes:
    """Make a PNG with as many chunks as fit. Each chunk unpacks to 1 MB."""
    prefix = {b"iTXt": b"k\0\1\0\0\0", b"zTXt": b"\0\0", b"iCCP": b"p\0\0"}[kind]
    one = chunk(kind, prefix + zlib.compress(b"\xff" * 1_000_000, 9))
    return png(64, 64, before=one * min(count, FULL // len(one)))


def png_pieces(size: int = FULL) -> bytes:
    """Make a PNG with one byte of data per chunk."""
    content = zlib.compress(noise(600, 600).tobytes(), 0)[: size // 13]
    return png(600, 600, data=b"".join(chunk(b"IDAT", content[at : at + 1]) for at in range(len(content))))


def tiff(
    width: int, height: int, tags: Mapping[int, tuple[int, int, bytes]] | None = None,
    *, compression: int = 1, strip: bytes = b"", strips: int = 1, rows: int | None = None, bits: int = 8,
) -> bytes:  # fmt: skip
    """Make a grey TIFF whose strips share the same bytes. `tags` are type, count and value."""
    offsets = struct.pack("<I", 8) * strips
    counts = struct.pack("<I", len(strip)) * strips
    entries = {
        256: (4, 1, struct.pack("<I", width)), 257: (4, 1, struct.pack("<I", height)),
        258: (3, 1, struct.pack("<I", bits)), 259: (3, 1, struct.pack("<I", compression)),
        262: (3, 1, struct.pack("<I", 1)), 273: (4, strips, offsets), 277: (3, 1, struct.pack("<I", 1)),
        278: (4, 1, struct.pack("<I", rows or height)), 279: (4, strips, counts), **(tags or {}),
    }  # fmt: skip
    body, directory = bytearray(b"II*\0" + bytes(4) + strip + bytes(len(strip) % 2)), b""
    for tag, (kind, count, value) in sorted(entries.items()):
        if len(value) > 4:
            position = len(body)
            body += value + bytes(len(value) % 2)
            value = struct.pack("<I", position)
        directory += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    struct.pack_into("<I", body, 4, len(body))
    return bytes(body) + struct.pack("<H", len(entries)) + directory + bytes(4)


def tiff_strips(strips: int = 500_000) -> bytes:
    """Make an uncompressed TIFF with one row per strip, and as many strips as fit."""
    return tiff(8, strips, strip=bytes(8), strips=strips, rows=1)


def tiff_cleared(strips: int = 1000) -> bytes:
    """Make an LZW TIFF whose strips share the same megabyte of codes that clear the table."""
    # The code 100000000 repeatedly, in 9 bits each, most significant bit first.
    clear = np.packbits(np.tile([1, 0, 0, 0, 0, 0, 0, 0, 0], 800_000)).tobytes()
    return tiff(64, strips, compression=5, strip=clear, strips=strips, rows=1)


def tiff_stored(strips: int = 1000) -> bytes:
    """Make a deflate TIFF whose strips share the same megabyte of empty blocks."""
    return tiff(64, strips, compression=8, strip=b"\x78\x01" + b"\0\0\0\xff\xff" * 200_000, strips=strips, rows=1)


def tiff_scans(width: int = 1700, height: int = 1700, scans: int = 100) -> bytes:
    """Make a TIFF of one strip that is a progressive JPEG of many scans."""
    image = repeat_last_scan(encode(flat(width, height, "L"), "JPEG", progressive=True), scans)
    return tiff(width, height, compression=7, strip=image)


def tiff_tags(count: int = 4000) -> bytes:
    """Make a TIFF with very many unknown tags."""
    return tiff(64, 64, {33_000 + tag: (3, 1, bytes(4)) for tag in range(count)}, compression=5, strip=bytes(100))


def tiff_fractions(size: int = FULL) -> bytes:
    """Make a TIFF whose resolution is a list of very many fractions."""
    count = size // 16
    value = struct.pack("<II", 1, 1) * count
    return tiff(64, 64, {282: (5, count, value), 283: (5, count, value)}, strip=bytes(64 * 64))


def gif(blocks: bytes) -> bytes:
    """Make a GIF with `blocks` before its image."""
    image = encode(noise(64, 64, 1), "GIF")
    start = image.index(b",", 13 + 3 * 2 ** ((image[10] & 7) + 1))
    return image[:start] + blocks + image[start:]


def gif_frames(count: int = 100_000) -> bytes:
    """Make a GIF of very many frames."""
    image = encode(flat(8, 8, "P"), "GIF")
    start = image.index(b",", 13)
    return image[:start] + image[start:-1] * min(count, FULL // (len(image) - start)) + b";"


def bmp_lines(width: int = 8_000_000, lines: int = 1) -> bytes:
    """Make a run-length encoded BMP whose lines end after their first pixel."""
    size = 14 + 40 + 1024
    header = b"BM" + struct.pack("<IHHI", size, 0, 0, size)
    header += struct.pack("<IiiHHIIiiII", 40, width, lines, 1, 8, 1, 0, 0, 0, 256, 0)
    return header + bytes(range(256)) * 4 + b"\1\1\0\0" * lines


def bmp_runs(pairs: int = 2_900_000) -> bytes:
    """Make a run-length encoded BMP with very many runs of one pixel."""
    head = bmp_lines(2000, 1500)[:1078]
    return head + b"\1\1" * pairs


def icon(frames: int = 60_000) -> bytes:
    """Make an icon file with very many entries."""
    image = encode(flat(64, 64), "PNG")
    entry = struct.pack("<BBBBHHII", 64, 64, 0, 0, 1, 32, len(image), 6 + 16 * frames)
    return struct.pack("<HHH", 0, 1, frames) + entry * frames + image


def icon_of(image: bytes) -> bytes:
    """Make an icon from a PNG."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(image), 22) + image


def webp_frames(count: int = 100_000) -> bytes:
    """Make a WebP of very many frames."""
    still = encode(flat(8, 8), "WEBP", lossless=True)[12:]
    frame = struct.pack("<IIHBHBHB", 0, 0, 7, 0, 7, 0, 100, 0)[2:] + still
    frame = bytes(6) + b"\7\0\0\7\0\0\x64\0\0\0" + still
    frame = b"ANMF" + struct.pack("<I", len(frame)) + frame + bytes(len(frame) % 2)
    body = b"VP8X" + struct.pack("<IB3s3s3s", 10, 2, bytes(3), b"\7\0\0", b"\7\0\0")
    body += b"ANIM" + struct.pack("<IIH", 6, 0, 0) + frame * min(count, FULL // len(frame))
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def avif_items(count: int = 100_000) -> bytes:
    """Make an AVIF that lists very many unused items."""
    image = encode(flat(64, 64), "AVIF")
    meta, info = image.index(b"meta") - 4, image.index(b"iinf") - 4
    size, meta_size = (struct.unpack_from(">I", image, at)[0] for at in (info, meta))
    item = b"".join(
        struct.pack(">I4sIIH4sB", 23, b"infe", 3 << 24, 100 + number, 0, b"av01", 0) for number in range(count)
    )
    known = struct.unpack_from(">H", image, info + 12)[0]
    entries = image[info + 14 : info + size] + item
    box = struct.pack(">I4sII", 16 + len(entries), b"iinf", 1 << 24, known + count) + entries
    head = image[:meta] + struct.pack(">I", meta_size + len(box) - size) + image[meta + 4 : info]
    return head + box + image[info + size :]


def j2k_tiles(tiles: int = 24_000) -> bytes:
    """Make a JPEG 2000 with very many tiles of a few pixels."""
    return encode(flat(8 * 300, 8 * (tiles // 300), "L"), "JPEG2000", tile_size=(8, 8), num_resolutions=1)


_PNG: dict[str, Bomb] = {
    "PNG, 16 bits of transparent colours, interlaced": lambda: png(2000, 2000, depth=16, color=6, interlaced=True),
    "PNG, interlaced": lambda: png(2800, 2800, interlaced=True, filtered=4),
    "PNG, a column, interlaced": lambda: png(1, 7_000_000, interlaced=True),
    "PNG, a column": lambda: png(1, 7_000_000),
    "PNG, pieces": png_pieces,
    "PNG, empty pieces": lambda: png(64, 64, before=chunk(b"IDAT") * (FULL // 12)),
    "PNG, chunks before": lambda: png(64, 64, before=chunk(b"prVt") * (FULL // 12)),
    "PNG, chunks after": lambda: png(64, 64, after=chunk(b"prVt") * (FULL // 12)),
    "PNG, gamma": lambda: png(64, 64, before=chunk(b"gAMA", bytes(4)) * (FULL // 16)),
    "PNG, text": png_text,
    "PNG, compressed text": lambda: png_text(b"zTXt"),
    "PNG, profiles": lambda: png_text(b"iCCP"),
    "PNG, fractions": lambda: png(64, 64, before=chunk(b"eXIf", exif_of_fractions(FULL))),
}
_TIFF: dict[str, Bomb] = {
    "TIFF, strips": tiff_strips,
    "TIFF, LZW that only clears": tiff_cleared,
    "TIFF, deflate of empty blocks": tiff_stored,
    "TIFF, JPEG scans": tiff_scans,
    "TIFF, tags": tiff_tags,
    "TIFF, more tags": lambda: tiff_tags(15_000),
    "TIFF, fractions": tiff_fractions,
    "TIFF, LZMA": lambda: encode(noise(1400, 1400), "TIFF", compression="lzma")[:FULL],
    "TIFF, Lab": lambda: encode(flat(1700, 1700, "LAB"), "TIFF", compression="tiff_deflate"),
}
_OTHERS: dict[str, Bomb] = {
    "GIF, comments": lambda: gif(b"!\xfe" + b"\1x" * (FULL // 2) + b"\0"),
    "GIF, extensions": lambda: gif(b"!\xf9\4abcd\0" * (FULL // 8)),
    "GIF, an extension of many blocks": lambda: gif(b"!\xff" + b"\1x" * (FULL // 2) + b"\0"),
    "GIF, junk": lambda: gif(b"x" * FULL),
    "GIF, frames": gif_frames,
    "GIF, large": lambda: encode(noise(2200, 2000, 1), "GIF"),
    "BMP, a long line": bmp_lines,
    "BMP, runs": bmp_runs,
    "icons": icon,
    "an icon of a PNG of pieces": lambda: icon_of(png_pieces()),
    "PPM, comments": lambda: b"P2 64 64 255\n" + b"#\n" * (FULL // 2),
    "PPM, comments in the head": lambda: b"P5 #" + b"x" * FULL + b"\n64 64 255\n" + bytes(4096),
    "PPM, spaces in the head": lambda: b"P5 " + b" " * FULL + b"\n64 64 255\n" + bytes(4096),
    "PPM, numbers": lambda: b"P2 1700 1700 255\n" + b"1 " * (1700 * 1700),
    "PPM, 254 levels": lambda: b"P5 2400 2400 254\n" + bytes(2400 * 2400),
    "PPM, 16 bits": lambda: b"P5 1700 1700 1000\n" + bytes(2 * 1700 * 1700),
    "PBM, bits": lambda: b"P1 2400 2400\n" + b"1" * (2400 * 2400),
    "WebP, frames": webp_frames,
    "WebP, large": lambda: encode(noise(1100, 1100), "WEBP", quality=90),
    "WebP, lossless": lambda: encode(noise(1100, 1100), "WEBP", lossless=True, method=0),
    "AVIF, large": lambda: encode(noise(800, 800), "AVIF", quality=90, speed=10),
    "AVIF, items": avif_items,
    "JPEG 2000, large": lambda: encode(noise(1100, 1100), "JPEG2000"),
    "JPEG 2000, 16 bits": lambda: encode(
        Image.fromarray(np.random.default_rng(0).integers(0, 65536, (1300, 1300), dtype=np.uint16)), "JPEG2000"
    ),
    "JPEG 2000, tiles": j2k_tiles,
}
