import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import files_in, write

from core.errors import UserError
from data.config import DataConfig
from data.ingest.stage import ingest
from data.sources.folder import FolderSource

ROOT = Path(__file__).parents[1]


def small_files(num_files, classes=("cat", "dog")):
    return {f"{name}/{index:04d}.jpg": f"{name} {index}".encode() for name in classes for index in range(num_files)}


def config_of(folder, **options):
    return DataConfig(source="folder", path=folder, **options)


def rows(raw):
    return {row["origin"]: row for shard in raw.glob("*.parquet") for row in pq.read_table(shard).to_pylist()}


def rejected(raw):
    return {row["path"]: row["reason"] for row in json.loads((raw / "rejected.json").read_text())}


class Workplace:
    """A source, and what is made of it."""

    def __init__(self, root, files):
        self.source, self.raw, self.state = write(root / "source", files), root / "raw", root / "state.json"

    def ingest(self, **options):
        ingest(config_of(self.source, **options), self.raw, self.state)

    @property
    def shards(self):
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in self.raw.glob("*.parquet")}


@pytest.fixture
def workplace(tmp_path):
    # 256 images a shard on average: about eight shards.
    return Workplace(tmp_path, small_files(1000))


@pytest.fixture
def reads(monkeypatch):
    """Names of the images that are read."""
    names, read_bytes = [], Path.read_bytes

    def counted(path):
        if path.suffix == ".jpg":
            names.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    return names


def test_bytes_are_kept_as_they_were(tmp_path):
    files = {"train/cat/1.jpg": b"\x00\xff", "test/cat/a b.jpg": b"two", "train/dog/\n.jpg": b"three"}
    workplace = Workplace(tmp_path, files)
    workplace.ingest()
    found = rows(workplace.raw)
    assert {origin: row["image"] for origin, row in found.items()} == files
    assert {(row["label"], row["split"]) for row in found.values()} == {
        ("cat", "train"),
        ("cat", "test"),
        ("dog", "train"),
    }
    assert all(row["sha256"] == hashlib.sha256(row["image"]).hexdigest() for row in found.values())
    assert rejected(workplace.raw) == {}


NAMES = st.text("a.é \n猫-", min_size=1, max_size=4).filter(lambda name: name.strip("."))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=12), max_size=8))
def test_every_image_is_kept_or_named(tree):
    with tempfile.TemporaryDirectory() as folder:
        workplace = Workplace(Path(folder), {"cat/good": b"good", "dog/good": b"good"})
        for name, content in tree.items():
            path = workplace.source / name
            if not path.exists() and not any(parent.is_file() for parent in path.parents):
                write(workplace.source, {name: content})
                if "/" in name:  # a class with nothing to read is an error
                    write(workplace.source, {f"{name.split('/')[0]}/good": b"good"})
        workplace.ingest(max_file_mb=8 / 2**20)
        visible = {name: content for name, content in files_in(workplace.source).items() if not _is_hidden(name)}
        usable = {name: content for name, content in visible.items() if "/" in name and 1 <= len(content) <= 8}
        assert {origin: row["image"] for origin, row in rows(workplace.raw).items()} == usable
        assert rejected(workplace.raw).keys() == visible.keys() - usable.keys()


def _is_hidden(name):
    return any(part.startswith(".") for part in name.split("/"))


def test_what_cannot_be_read_is_named_with_its_reason(tmp_path, monkeypatch):
    files = {"cat/1.jpg": b"x", "dog/1.jpg": b"x", "cat/empty.jpg": b"", "cat/large.jpg": bytes(1536 * 1024)}
    workplace = Workplace(tmp_path, {**files, "dog/vanishes.jpg": b"x"})
    list_images = FolderSource.list_images

    def list_and_lose(source):
        listing = list_images(source)
        (workplace.source / "dog" / "vanishes.jpg").unlink()
        return listing

    monkeypatch.setattr(FolderSource, "list_images", list_and_lose)
    workplace.ingest(max_file_mb=1)
    assert rows(workplace.raw).keys() == {"cat/1.jpg", "dog/1.jpg"}
    assert rejected(workplace.raw) == {
        "cat/empty.jpg": "empty file",
        "cat/large.jpg": "1.5 MB, more than data.max_file_mb=1",
        "dog/vanishes.jpg": "cannot be read: No such file or directory",
    }


def test_a_large_file_is_not_read(tmp_path, reads):
    workplace = Workplace(tmp_path, {"cat/1.jpg": b"x", "dog/1.jpg": b"x", "cat/large.jpg": bytes(2**20 + 1)})
    workplace.ingest(max_file_mb=1)
    assert reads == ["1.jpg", "1.jpg"]


@pytest.mark.parametrize("content", [b"longer than it was", b"x"])
def test_a_file_is_read_whole_whatever_it_was_when_it_was_listed(workplace, monkeypatch, content):
    listing = FolderSource(workplace.source).list_images()
    (workplace.source / "cat/0001.jpg").write_bytes(content)
    monkeypatch.setattr(FolderSource, "list_images", lambda _: listing)
    workplace.ingest()
    assert rows(workplace.raw)["cat/0001.jpg"]["image"] == content


def test_a_class_that_cannot_be_read_is_told(tmp_path):
    workplace = Workplace(tmp_path, {"cat/1.jpg": b"x", "dog\n/1.jpg": b"", "dog\n/2.jpg": b""})
    expected = (
        r"^data.path: none of the files of class 'dog\\n' can be read, the first is 'dog\\n/1.jpg' \(empty file\): mend"
    )
    with pytest.raises(UserError, match=expected):
        workplace.ingest()


def test_unchanged_shards_are_not_read_again(workplace, reads):
    workplace.ingest()
    assert len(reads) == 2000
    assert len(workplace.shards) > 4
    before = workplace.shards
    reads.clear()
    workplace.ingest()
    workplace.ingest(max_file_mb=1)  # a limit that no file comes near
    assert reads == []
    assert workplace.shards == before


def test_adding_an_image_rewrites_one_shard(workplace, reads):
    workplace.ingest()
    before = workplace.shards
    reads.clear()
    write(workplace.source, {"cat/0500b.jpg": b"new"})
    workplace.ingest()
    after = workplace.shards
    assert len(before.items() - after.items()) == len(after.items() - before.items()) == 1
    ((name, _),) = after.items() - before.items()
    assert len(reads) == pq.read_metadata(workplace.raw / name).num_rows < 1025
    assert len(rows(workplace.raw)) == 2001


def test_a_changed_file_is_read_again(workplace, reads):
    workplace.ingest()
    before = workplace.shards
    reads.clear()
    write(workplace.source, {"dog/0001.jpg": b"DOG 1"})
    workplace.ingest()
    assert rows(workplace.raw)["dog/0001.jpg"]["image"] == b"DOG 1"
    assert before.keys() == workplace.shards.keys()
    assert len(before.items() - workplace.shards.items()) == 1


@pytest.mark.parametrize("damage", ["altered", "cut off", "removed"])
def test_a_damaged_shard_is_written_again(workplace, damage):
    workplace.ingest()
    before = files_in(workplace.raw)
    shard = next(workplace.raw.glob("*.parquet"))
    content = shard.read_bytes()
    shard.unlink()
    if damage != "removed":
        shard.write_bytes(content[:-1] if damage == "cut off" else content[:-1] + b"?")
    workplace.ingest()
    assert files_in(workplace.raw) == before


def test_shards_of_another_source_are_removed_and_nothing_else(tmp_path, workplace):
    workplace.ingest()
    write(workplace.raw, {"mine.parquet": b"x", "notes/mine.txt": b"x"})
    other = write(tmp_path / "other", {"ape/1.jpg": b"x", "bee/1.jpg": b"x"})
    ingest(config_of(other), workplace.raw, workplace.state)
    names = files_in(workplace.raw).keys()
    assert {"mine.parquet", "notes/mine.txt", "rejected.json"} < names
    assert len(names) == 4
    assert pq.read_table(workplace.raw / min(names - {"rejected.json"}))["label"].to_pylist() == ["ape", "bee"]


def test_the_source_must_not_lie_where_ingest_writes(tmp_path):
    raw = write(tmp_path / "data" / "raw", {"cat/1.jpg": b"x", "dog/1.jpg": b"x"})
    for source in (raw, raw.parent, raw / "cat", tmp_path):
        with pytest.raises(
            UserError, match=r"^data.path: '.*' overlaps with .*raw, which Convoy writes: move the images"
        ):
            ingest(config_of(source), raw, tmp_path / "state.json")
    assert files_in(raw) == {"cat/1.jpg": b"x", "dog/1.jpg": b"x"}


@pytest.mark.parametrize("content", [b"", b"{", b"[1", b"\xff"])
def test_a_damaged_cache_is_none(workplace, content):
    workplace.ingest()
    before = files_in(workplace.raw)
    workplace.state.write_bytes(content)
    workplace.ingest()
    assert files_in(workplace.raw) == before


def test_an_interruption_leaves_whole_shards_and_the_next_run_finishes(tmp_path, workplace, reads, monkeypatch):
    read_bytes = Path.read_bytes

    def interrupted(path):
        if len(reads) == 700:
            raise KeyboardInterrupt
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            workplace.ingest()
    kept = rows(workplace.raw)
    assert 0 < len(kept) <= 700
    assert all(path.suffix == ".parquet" and path.name[0] != "." for path in workplace.raw.iterdir())
    reads.clear()
    workplace.ingest()
    assert len(reads) == 2000 - len(kept)
    never_interrupted = Workplace(tmp_path / "other", small_files(1000))
    never_interrupted.ingest()
    assert files_in(workplace.raw) == files_in(never_interrupted.raw)


def test_what_a_killed_process_left_is_removed(workplace):
    workplace.ingest()
    before = files_in(workplace.raw)
    write(workplace.raw, {".0123456789abcdef.parquet.tmp": b"half", ".rejected.json.tmp": b"half"})
    workplace.ingest()
    assert files_in(workplace.raw) == before


@pytest.mark.slow
def test_a_killed_stage_goes_on_where_it_was(tmp_path):
    workplace = Workplace(tmp_path, small_files(6000))
    (tmp_path / "outputs").mkdir()
    params = {"source": "folder", "path": str(workplace.source), "max_file_mb": 64}
    (tmp_path / "outputs" / "data-params.json").write_text(json.dumps({"ingest": params}))
    raw = tmp_path / "data" / "raw"

    def stage():
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, "-m", "data.ingest.stage"], cwd=tmp_path, env=environment)

    with stage() as process:
        deadline = time.monotonic() + 60
        while not list(raw.glob("*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    half = files_in(raw)
    assert "rejected.json" not in half
    assert all(pq.read_metadata(raw / name).num_rows for name in half if not name.startswith("."))
    with stage() as process:
        assert process.wait(60) == 0
    workplace.ingest()
    assert files_in(raw) == files_in(workplace.raw)
    assert len(half) < len(files_in(raw))
