import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import draw_classes
from hypothesis import given
from hypothesis import strategies as st

from data import ingest as module
from data.config import DataConfig
from data.errors import UserError
from data.ingest import cut_into_shards, ingest
from data.sources import SourceImage


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MEAN_SHARD_IMAGES", 16)
    return draw_classes(tmp_path / "photos", ["cat", "dog"], 60, size=8)


def run(photos, **options):
    """Ingest; gives the rows by origin, and the reasons of what was rejected."""
    folder = photos.parent
    ingest(DataConfig(source="folder", path=photos, **options), folder / "raw", folder / "state.json")
    rows = [row for shard in sorted((folder / "raw").glob("*.parquet")) for row in pq.read_table(shard).to_pylist()]
    rejected = json.loads((folder / "raw" / "rejected.json").read_text(encoding="utf-8"))
    return {row["origin"]: row for row in rows}, {row["path"]: row["reason"] for row in rejected}


def test_original_bytes_are_kept(photos):
    rows, rejected = run(photos)
    assert (len(rows), rejected) == (120, {})
    for origin, row in rows.items():
        assert row["image"] == (photos / origin).read_bytes()
        assert row["sha256"] == hashlib.sha256(row["image"]).hexdigest()
        assert row["label"] == origin.split("/")[0]


def test_every_file_is_either_kept_or_named(photos):
    (photos / "cat" / "empty.png").write_bytes(b"")
    (photos / "cat" / "large.png").write_bytes(bytes(2**20 + 1))
    rows, rejected = run(photos, max_file_mb=1)
    assert rejected == {"cat/empty.png": "empty file", "cat/large.png": "1.0 MB, more than data.max_file_mb=1"}
    assert len(rows) == 120


def test_unchanged_shards_are_not_read_again(photos, monkeypatch):
    run(photos)
    before = {path.name: path.stat().st_mtime_ns for path in (photos.parent / "raw").glob("*.parquet")}
    assert len(before) > 2
    read = []
    write_shard = module.write_shard
    monkeypatch.setattr(module, "write_shard", lambda path, *rest: read.append(path.name) or write_shard(path, *rest))
    run(photos)
    assert read == []
    (photos / "dog" / "new.png").write_bytes((photos / "dog" / "0.png").read_bytes())
    rows, _ = run(photos)
    assert "dog/new.png" in rows
    assert len(read) in (1, 2), "the shard that the image falls into, and its other half where it ends one"


def test_an_interruption_leaves_whole_files_and_the_next_run_finishes(photos, monkeypatch):
    write_shard, calls = module.write_shard, []

    def stop_at_the_third(path, *rest):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write_shard(path, *rest)

    monkeypatch.setattr(module, "write_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(photos)
    raw = photos.parent / "raw"
    assert not (raw / "rejected.json").exists(), "it is written last"
    assert sorted(raw.iterdir()) == sorted(calls[:2])
    rows, _ = run(photos)
    assert len(rows) == 120
    assert len(calls) == len(set(calls)) + 1, "only the third was done again"


def test_another_source_removes_the_shards_of_the_first(photos):
    run(photos)
    for image in (photos / "cat").iterdir():
        image.unlink()
    draw_classes(photos, ["emu"], 3)
    rows, _ = run(photos)
    assert {row["label"] for row in rows.values()} == {"dog", "emu"}


def test_nothing_that_can_be_read(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"read"):
        run(tmp_path / "photos")


@given(st.sets(st.integers(0, 10**9), max_size=400), st.integers(0, 10**9))
def test_adding_an_image_changes_few_shards(numbers, added):
    def shards(names):
        images = (SourceImage(f"{name:010}", "x", None, Path(), 1, "") for name in sorted(names))
        return {tuple(image.origin for image in shard) for shard in cut_into_shards(images)}

    before, after = shards(numbers), shards(numbers | {added})
    assert len(after - before) <= 2
    assert sorted(name for shard in after for name in shard) == sorted(f"{name:010}" for name in numbers | {added})
