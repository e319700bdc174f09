"""Images that look alike share a split, whatever was prepared before."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encode, files_in, noise, write
from PIL import Image

from core.errors import UserError
from data.batches.shards import PreparedImages, verify
from data.config import DataConfig
from data.ingest.stage import ingest
from data.preparing.shard import read_part
from data.preparing.stage import prepare
from data.quality import near_duplicates, perceptual_hash
from data.quality.findings import read_quality
from data.quality.perceptual_hash import near_groups

SIZE = 16


def picture(seed):
    """Blurred noise: like no other of another seed."""
    return Image.fromarray(noise(8, 8, seed)).resize((48, 48), Image.Resampling.BICUBIC)


def copies(seed, names):
    """Of one picture, files whose bytes differ a little, by path."""
    image = np.asarray(picture(seed)).astype(int)
    return {
        name: encode(
            Image.fromarray((image + index % 3).clip(0, 255).astype(np.uint8)), "PNG", compress_level=index // 3
        )
        for index, name in enumerate(names)
    }


def originals(count, seed=0):
    return {
        f"{name}/{index:03d}.png": encode(picture((seed, number, index)), "PNG")
        for number, name in enumerate(("cat", "dog"))
        for index in range(count)
    }


def prepared_from(folder, files, **options):
    """Make the source anew, and prepare on top of what was prepared before."""
    shutil.rmtree(folder / "source", ignore_errors=True)
    options = {"val_fraction": 0.3, "test_fraction": 0.3, **options}
    config = DataConfig(source="folder", path=write(folder / "source", files), size=SIZE, **options)
    ingest(config, folder / "raw", folder / "state.json")
    return prepare(config, folder / "raw", folder / "prepared", folder / "parts")


def splits_in(folder):
    rows = pq.read_table(folder / "prepared" / "index.parquet").to_pylist()
    return {row["origin"]: row["split"] for row in rows}


def moved_in(folder):
    """Groups of the report whose members were drawn for several splits: note by origin."""
    findings = [finding for finding in read_quality(folder / "prepared").findings if finding.kind == "near_moved"]
    return [{image.origin: image.note for image in group} for finding in findings for group in finding.groups]


GROUP = [f"cat/copy{index}.png" for index in range(8)]


@pytest.fixture
def many_shards(monkeypatch):
    monkeypatch.setattr("data.ingest.stage.MEAN_SHARD_IMAGES", 4)


@pytest.mark.usefixtures("many_shards")
def test_near_duplicates_share_a_split_and_the_report_says_which_were_moved(tmp_path):
    files = originals(20) | copies(77, GROUP)
    prepared_from(tmp_path / "apart", files, group_near_duplicates=False)
    apart = splits_in(tmp_path / "apart")
    assert {apart[name] for name in GROUP} == {"train", "val", "test"}
    manifest = prepared_from(tmp_path, files)
    together = splits_in(tmp_path)
    assert len({together[name] for name in GROUP}) == 1
    assert {name: split for name, split in together.items() if name not in GROUP}.items() <= apart.items()
    (group,) = moved_in(tmp_path)
    assert group == {name: f"drawn for {apart[name]}" for name in GROUP}
    assert "near_leakage" in {finding.kind for finding in read_quality(tmp_path / "apart" / "prepared").findings}
    assert "near_leakage" not in {finding.kind for finding in read_quality(tmp_path / "prepared").findings}
    verify(tmp_path / "prepared", manifest)


@pytest.mark.usefixtures("many_shards")
def test_arrays_index_and_colours_are_those_of_the_moved_images(tmp_path):
    files = originals(20) | copies(77, GROUP)
    manifest = prepared_from(tmp_path, files)
    rows = pq.read_table(tmp_path / "prepared" / "index.parquet").to_pylist()
    trained = []
    for split in ("train", "val", "test"):
        names = [row["origin"] for row in rows if row["split"] == split]
        images = PreparedImages(tmp_path / "prepared", manifest, split)
        for name, pixels in zip(names, images.gather(np.arange(len(images))), strict=True):
            with Image.open(tmp_path / "source" / name) as image:
                expected = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(pixels, expected)
        if split == "train":
            trained = images.gather(np.arange(len(images)))
    np.testing.assert_allclose(manifest.color.mean, (trained / 255).mean(axis=(0, 1, 2)), atol=1e-6)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 100))
def test_adding_images_moves_no_others_or_the_report_says_which(tmp_path_factory, sizes, seed):
    """Groups of look-alikes of which each gets one more image."""
    folder = tmp_path_factory.mktemp("grow")
    names = [[f"cat/{group}-{index}.png" for index in range(size + 1)] for group, size in enumerate(sizes)]
    grown = [copies((seed, group), some) for group, some in enumerate(names)]
    base = originals(15)
    prepared_from(folder, base | {name: one for some in grown for name, one in list(some.items())[:-1]})
    before = splits_in(folder)
    everything = base | {name: content for some in grown for name, content in some.items()}
    prepared_from(folder, everything)
    after = splits_in(folder)
    assert all(len({after[name] for name in some}) == 1 for some in names)
    told = {name for group in moved_in(folder) for name in group}
    assert {name for name in before if after[name] != before[name]} <= told
    fresh = folder / "fresh"
    prepared_from(fresh, everything)
    assert files_in(fresh / "prepared") == files_in(folder / "prepared")
    assert files_in(fresh / "parts") == files_in(folder / "parts")


@pytest.mark.usefixtures("many_shards")
def test_grouping_can_be_switched_on_and_off_without_decoding(tmp_path, monkeypatch):
    files = originals(20) | copies(77, GROUP)
    made = {}
    for name, grouped in (("on", True), ("off", False)):
        prepared_from(tmp_path / name, files, group_near_duplicates=grouped)
        made[grouped] = files_in(tmp_path / name / "prepared"), files_in(tmp_path / name / "parts")
    monkeypatch.setattr("data.preparing.shard.decode_and_describe", None)
    for grouped in (False, True):
        prepared_from(tmp_path / "on", files, group_near_duplicates=grouped)
        assert (files_in(tmp_path / "on" / "prepared"), files_in(tmp_path / "on" / "parts")) == made[grouped]


def test_splits_of_the_user_are_not_moved_and_are_reported(tmp_path):
    files = {f"{split}/{name}": content for number, split in enumerate(("train", "val", "test"))
             for name, content in originals(4, seed=number).items()}  # fmt: skip
    files |= copies(77, ["train/cat/a.png", "test/cat/b.png", "val/dog/c.png"])
    prepared_from(tmp_path, files)
    assert all(split == name.partition("/")[0] for name, split in splits_in(tmp_path).items())
    (leak,) = [one for one in read_quality(tmp_path / "prepared").findings if one.kind == "near_leakage"]
    assert [image.origin for image in leak.groups[0]] == ["test/cat/b.png", "train/cat/a.png", "val/dog/c.png"]
    assert moved_in(tmp_path) == []


def test_what_is_drawn_from_the_training_folder_stays_out_of_the_users_test_folder(tmp_path):
    files = {f"{split}/{name}": content for number, split in enumerate(("train", "test"))
             for name, content in originals(15, seed=number).items()}  # fmt: skip
    alike = [f"train/{name}" for name in GROUP]
    files |= copies(77, [*alike, "test/cat/copy.png"])
    prepared_from(tmp_path, files)
    splits = splits_in(tmp_path)
    assert splits["test/cat/copy.png"] == "test"
    assert len({splits[name] for name in alike}) == 1
    assert splits[alike[0]] in ("train", "val")
    assert {name for name, split in splits.items() if split == "test"} == {name for name in files if name[:4] == "test"}


def test_a_record_keeps_what_was_drawn(tmp_path):
    prepared_from(tmp_path, originals(20) | copies(77, GROUP))
    parts = [read_part(record) for record in (tmp_path / "parts").glob("*.json")]
    moved = {origin: split for part in parts for origin, split in part.moved.items()}
    (group,) = moved_in(tmp_path)
    split = splits_in(tmp_path)[GROUP[0]]
    assert moved == {name: note.split()[-1] for name, note in group.items() if note != f"drawn for {split}"}


def test_one_large_group_that_empties_a_split_is_told(tmp_path):
    files = copies(77, [f"{name}/{index:02d}.png" for name in ("cat", "dog") for index in range(12)])
    with pytest.raises(UserError, match=r"or data\.group_near_duplicates=false$"):
        prepared_from(tmp_path, files)


def test_pairs_that_are_joined_are_not_compared(monkeypatch):
    """Of 60 equal images with hashes of a few bits, as many pairs are compared as fit into one block, and few more."""
    monkeypatch.setattr(perceptual_hash, "COMPARED_TOGETHER", 8)
    hashes = np.array([1 << (index % 6) for index in range(60)], dtype=np.uint64) ^ np.arange(60, dtype=np.uint64)
    images, read = np.zeros((60, 16, 16, 3), np.uint8), []
    groups, num_left = near_groups(hashes, lambda indices: read.append(len(indices)) or images[list(indices)])
    assert (groups, num_left) == ([list(range(60))], 0)
    assert len(perceptual_hash.near_pairs(hashes)) > 500
    assert sum(read) < 200


def test_too_many_pairs_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(perceptual_hash, "MAX_PAIRS", 4)
    monkeypatch.setattr(perceptual_hash, "COMPARED_TOGETHER", 2)
    alike = [copies((77, group), [f"cat/{group}-{index}.png" for index in range(2)]) for group in range(8)]
    prepared_from(tmp_path, originals(20) | {name: one for some in alike for name, one in some.items()})
    report = json.loads((tmp_path / "prepared" / "quality.json").read_text())
    summaries = [finding["summary"] for finding in report["findings"] if finding["kind"] == "near_unchecked"]
    assert summaries == ["up to 4 pairs of images may look alike and were not compared"]


def test_the_order_of_images_does_not_depend_on_what_was_moved(tmp_path):
    """Where not all pairs are compared, which ones are must not depend on earlier runs."""
    files = originals(20) | copies(77, GROUP)
    orders = []
    for grouped in (False, True):
        prepared_from(tmp_path, files, group_near_duplicates=grouped)
        parts = [read_part(record) for record in sorted((tmp_path / "parts").glob("*.json"))]
        orders.append([image.row.origin for part in parts for image in near_duplicates._as_drawn(part)])
    assert orders[0] == orders[1]
