import json
import re
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from images import encode, noise, ppm, write
from PIL import Image

from core.errors import UserError
from data.batches.shards import PreparedImages
from data.config import DataConfig
from data.ingest.stage import ingest
from data.manifest import read_data_manifest
from data.preparing import shard as part_module
from data.preparing.stage import INDEX_FILE, prepare
from data.quality.findings import read_quality
from data.quality.page import quality_page
from data.quality.report import as_markdown, data_report


def picture(seed, side=96):
    """Blurred noise: as smooth as a photograph, and like no other of another seed."""
    return Image.fromarray(noise(12, 12, seed)).resize((side, side), Image.Resampling.BICUBIC)


def png(seed):
    return encode(picture(seed), "PNG")


def png_of_16_bits(seed, side=48):
    """Colours of 16 bits, which Pillow reads but does not write."""
    pixels = np.asarray(picture(seed, side)).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def turned(seed):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(picture(seed), "JPEG", exif=exif)


def half_transparent(seed):
    image = picture(seed).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 96, 48))
    return encode(image, "WEBP", lossless=True)


CLEAN = {
    f"{split}/{name}/{index}.png": png((number, index, shift))
    for number, name in enumerate(("cat", "dog"))
    for split, count, shift in (("train", 8, 0), ("val", 3, 1), ("test", 3, 2))
    for index in range(count)
}

FORMS = {
    "train/cat/cmyk.jpg": encode(picture(20).convert("CMYK"), "JPEG"),
    "train/cat/palette.png": encode(picture(21).quantize(32), "PNG"),
    "train/cat/grey16.png": encode(Image.fromarray(noise(40, 40, 22)[..., 0].astype(np.uint16) * 257), "PNG"),
    "train/dog/colour16.png": png_of_16_bits(23),
    "train/dog/animation.gif": encode(picture(24), "GIF", save_all=True, append_images=[picture(25)]),
    "train/dog/turned.jpg": turned(26),
    "train/dog/clear.webp": half_transparent(27),
}
HANDLED = {"CMYK": 1, "palette": 2, "16 bit": 2, "transparency": 1, "EXIF rotation": 1, "animation": 1}
"""The animated GIF has a palette too."""

PLANTED = {
    "undecodable": {("train/cat/cut.png",), ("train/dog/page.jpg",)},
    "passed_over": {("notes.txt",), ("train/dog/empty.png",)},
    "too_small": {("train/cat/dot.png",)},
    "extreme_aspect": {("train/dog/strip.png",)},
    "conflicting_labels": {("train/cat/either.png", "train/dog/either.png")},
    "leakage": {("test/cat/0.png", "train/cat/leak.png"), ("test/dog/1.png", "val/dog/leak.png")},
    "exact_duplicates": {("train/dog/3 again.png", "train/dog/3.png")},
    "near_duplicates": {("train/dog/4 saved again.jpg", "train/dog/4.png")},
    "near_leakage": {("train/cat/5.png", "val/cat/5 smaller.png")},
    "near_conflicts": {("train/cat/6.png", "train/dog/6 brighter.png")},
    "imbalance": set(),
}
DROPPED = {
    "train/cat/either.png": "the same image under 2 labels: cat, dog",
    "train/dog/either.png": "the same image under 2 labels: cat, dog",
    "train/cat/leak.png": "the same image is in the test split: test/cat/0.png",
    "val/dog/leak.png": "the same image is in the test split: test/dog/1.png",
}


def dirty_files():
    lighter = picture((0, 6, 0)).point(lambda level: 30 + 0.8 * level)
    rare = {f"{split}/emu/0.png": png((9, index)) for index, split in enumerate(("train", "val", "test"))}
    return CLEAN | FORMS | rare | {
        "train/cat/cut.png": png(40)[:-2000],
        "train/dog/page.jpg": b"<html>404 not found</html>",
        "notes.txt": b"hello",
        "train/dog/empty.png": b"",
        "train/cat/dot.png": encode(noise(5, 20, 41), "PNG"),
        "train/dog/strip.png": encode(noise(100, 20, 42), "PNG"),
        "train/cat/either.png": png(43),
        "train/dog/either.png": png(43),
        "train/cat/leak.png": CLEAN["test/cat/0.png"],
        "val/dog/leak.png": CLEAN["test/dog/1.png"],
        "train/dog/3 again.png": CLEAN["train/dog/3.png"],
        "train/dog/4 saved again.jpg": encode(picture((1, 4, 0)), "JPEG", quality=60),
        "val/cat/5 smaller.png": encode(picture((0, 5, 0)).resize((60, 60), Image.Resampling.LANCZOS), "PNG"),
        "train/dog/6 brighter.png": encode(lighter, "PNG"),
    }  # fmt: skip


class Workshop:
    """A folder of images, and what becomes of it."""

    def __init__(self, root, files, **options):
        self.config = DataConfig(source="folder", path=write(root / "images", files), **options)
        self.raw, self.prepared, self.parts = root / "raw", root / "prepared", root / "parts"
        self.state = root / "state.json"

    def run(self, **options):
        config = self.config.model_copy(update=options)
        ingest(config, self.raw, self.state)
        return prepare(config, self.raw, self.prepared, self.parts)

    def found(self):
        findings = read_quality(self.prepared).findings
        return {
            finding.kind: {tuple(image.origin for image in group) for group in finding.groups} for finding in findings
        }


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    workshop = Workshop(tmp_path_factory.mktemp("dirty"), dirty_files())
    with pytest.raises(UserError) as error:
        workshop.run()
    return workshop, error.value


@pytest.fixture
def dropping(tmp_path):
    return Workshop(tmp_path, dirty_files(), on_conflict="drop")


def test_nothing_is_found_in_clean_data(tmp_path):
    workshop = Workshop(tmp_path, CLEAN)
    workshop.run()
    assert workshop.found() == {}
    assert set(read_quality(workshop.prepared).handled.values()) == {0}
    assert "Nothing was found" in quality_page(workshop.prepared)


def test_every_planted_fault_is_found(refused):
    workshop, _ = refused
    assert workshop.found() == PLANTED
    assert read_quality(workshop.prepared).handled == HANDLED


def test_conflicts_and_leaks_are_refused_with_some_of_them_and_where_all_are(refused):
    workshop, error = refused
    message = str(error)
    assert error.exit_code == 1
    assert "\n" not in message
    assert "'train/cat/either.png' (cat, train) = 'train/dog/either.png' (dog, train)" in message
    assert "'test/cat/0.png' (cat, test) = 'train/cat/leak.png' (cat, train)" in message
    assert str(workshop.prepared / "quality.json") in message
    assert "data.on_conflict=drop" in message
    assert {finding.kind for finding in read_quality(workshop.prepared).of("error")} == {
        "conflicting_labels",
        "leakage",
    }
    with pytest.raises(UserError, match="manifest"):
        read_data_manifest(workshop.prepared)


def test_notes_say_what_is_meant(refused):
    findings = {finding.kind: finding for finding in read_quality(refused[0].prepared).findings}
    notes = {image.origin: image.note for finding in findings.values() for group in finding.groups for image in group}
    assert notes["train/dog/page.jpg"] == "not an image"
    assert notes["train/dog/empty.png"] == "empty file"
    assert notes["train/cat/dot.png"] == "5 x 20 pixels"
    assert notes["train/dog/strip.png"] == "100 x 20 pixels"
    assert findings["imbalance"].summary == "class 'dog' has 17 training images, class 'emu' 1: 17.0 to 1"
    assert findings["leakage"].summary == "2 images in more than one split"
    assert findings["conflicting_labels"].summary == "1 image under more than one label"


def test_dropping_leaves_out_exactly_the_offending_copies(dropping):
    manifest = dropping.run()
    rejected = {image.path: image.reason for image in manifest.rejected}
    assert DROPPED.items() <= rejected.items()
    unusable = {origin for kind in ("undecodable", "passed_over") for (origin,) in PLANTED[kind]}
    assert rejected.keys() == DROPPED.keys() | unusable
    index = pq.read_table(dropping.prepared / INDEX_FILE).to_pylist()
    assert {row["origin"] for row in index} == dirty_files().keys() - rejected.keys()
    for split in ("train", "val", "test"):
        origins = [row["origin"] for row in index if row["split"] == split]
        images = PreparedImages(dropping.prepared, manifest, split)
        assert len(images) == len(origins) == manifest.num_in(split)
        # The arrays hold what the index says: `test/cat/0.png` is there, its copy among the training images is not.
        for origin, pixels in zip(origins, images.gather(np.arange(len(images))), strict=True):
            if origin in CLEAN:
                expected = Image.open(dropping.config.path / origin).resize((32, 32), Image.Resampling.BILINEAR)
                np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_dropped_images_are_reported_as_warnings(dropping):
    dropping.run()
    assert dropping.found() == PLANTED
    report = read_quality(dropping.prepared)
    assert report.of("error") == []
    (group,) = next(finding.groups for finding in report.findings if finding.kind == "conflicting_labels")
    assert [image.note for image in group] == ["dropped", "dropped"]
    summary = data_report(dropping.prepared)
    assert json.loads(json.dumps(summary))["handled"] == HANDLED
    assert "1 image under more than one label, all copies dropped" in summary["warnings"]
    assert "EXIF rotation" in as_markdown(summary)


def test_only_parts_with_conflicts_are_made_again(tmp_path, monkeypatch):
    """Shards of one image each: dropping makes anew those that hold a dropped copy."""
    monkeypatch.setattr("data.ingest.stage.MEAN_SHARD_IMAGES", 1)
    workshop = Workshop(tmp_path, dirty_files())
    with pytest.raises(UserError):
        workshop.run()
    made = []
    real = part_module._prepare
    monkeypatch.setattr(part_module, "_prepare", lambda name, *rest: made.append(name) or real(name, *rest))
    workshop.run(on_conflict="drop", min_side=4, max_imbalance=50)
    raw = [pq.read_table(workshop.raw / f"{name}.parquet", columns=["origin"]) for name in made]
    origins = {origin for table in raw for origin in table["origin"].to_pylist()}
    assert origins == DROPPED.keys()
    assert not {"too_small", "imbalance"} & workshop.found().keys()


def test_broken_copies_under_two_labels_are_no_conflict(tmp_path):
    workshop = Workshop(tmp_path, CLEAN | dict.fromkeys(("train/cat/x.png", "train/dog/x.png"), b"no image"))
    manifest = workshop.run()
    assert workshop.found() == {"undecodable": {("train/cat/x.png",), ("train/dog/x.png",)}}
    dropped = workshop.run(on_conflict="drop")
    assert (
        [image.reason for image in dropped.rejected]
        == ["not an image"] * 2
        == [image.reason for image in manifest.rejected]
    )


def test_drawn_splits_cannot_leak(tmp_path):
    """The split follows from the bytes, so copies are in one split, whatever it is."""
    files = {f"{name}/{index}.ppm": ppm(noise(12, 12, (number, index % 20)))
             for number, name in enumerate(("cat", "dog")) for index in range(40)}  # fmt: skip
    workshop = Workshop(tmp_path, files)
    workshop.run()
    assert workshop.found().keys() == {"exact_duplicates"}
    assert len(workshop.found()["exact_duplicates"]) == 40


def test_the_page_shows_each_finding_and_needs_nothing_else(refused):
    page = quality_page(refused[0].prepared)
    for kind, groups in PLANTED.items():
        assert f'<h2 id="{kind}">' in page
        for origin in (origin for group in groups for origin in group):
            assert f"{origin}<" in page or f"{origin}:" in page
    # All but those that were never decoded have a picture.
    shown = [
        image for kind in PLANTED.keys() - {"undecodable", "passed_over"} for group in PLANTED[kind] for image in group
    ]
    assert page.count("<img ") == page.count('src="data:image/png;base64,') == len(shown)
    assert not re.search(r"https?:|<script |<link", page)
    assert page == quality_page(refused[0].prepared)


def test_the_page_escapes_names(tmp_path):
    names = {f"train/<b>&{index}/{number}.png": png((50 + index, 0)) for index in range(2) for number in range(2)}
    workshop = Workshop(tmp_path, CLEAN | names)
    workshop.run()
    page = quality_page(workshop.prepared)
    assert "train/&lt;b&gt;&amp;1/0.png" in page
    assert "<b>" not in page


def test_there_is_no_page_before_anything_was_prepared(tmp_path):
    with pytest.raises(UserError, match="convoy data prepare"):
        quality_page(tmp_path)
