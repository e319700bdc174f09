"""What an interruption, a kill or a damaged file does to `prepare`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from images import files_in, noise, photos, ppm, write
from PIL import Image

from core.errors import UserError
from data.batches.shards import PreparedImages, verify
from data.config import DataConfig
from data.ingest.stage import ingest
from data.manifest import read_data_manifest
from data.preparing.stage import prepare

ROOT = Path(__file__).parents[1]
SIZE = 8


class Workplace:
    """Ingested images, 256 a shard on average, and what is made of them."""

    def __init__(self, root, num_images=500):
        self.raw, self.prepared, self.parts = root / "raw", root / "prepared", root / "parts"
        self.config = DataConfig(
            source="folder", path=write(root / "source", photos(num_images, width=8, height=8)), size=SIZE
        )
        ingest(self.config, self.raw, root / "state.json")
        self.num_images = 2 * num_images
        self.num_shards = len(list(self.raw.glob("*.parquet")))

    def prepare(self):
        return prepare(self.config, self.raw, self.prepared, self.parts)


@pytest.fixture
def workplace(tmp_path):
    return Workplace(tmp_path)


@pytest.fixture
def opened(monkeypatch):
    """What is done with every image that is opened, besides counting it."""

    class Opened:
        num_images = 0
        look = staticmethod(lambda: None)

    image_open = Image.open

    def counted(*arguments, **options):
        Opened.look()
        Opened.num_images += 1
        return image_open(*arguments, **options)

    monkeypatch.setattr(Image, "open", counted)
    return Opened


def test_finished_parts_are_not_decoded_again(workplace, opened):
    workplace.prepare()
    assert opened.num_images == workplace.num_images
    before = files_in(workplace.prepared)
    workplace.prepare()
    assert opened.num_images == workplace.num_images
    assert files_in(workplace.prepared) == before


def test_an_interruption_keeps_finished_parts(tmp_path, workplace, opened):
    def interrupt():
        if opened.num_images == 700:
            raise KeyboardInterrupt

    opened.look = interrupt
    with pytest.raises(KeyboardInterrupt):
        workplace.prepare()
    finished = [json.loads(path.read_text()) for path in workplace.parts.glob("*.json")]
    num_finished = sum(len(rows) for part in finished for rows in part["rows"].values())
    assert 0 < num_finished < 700
    names = {path.name for path in workplace.prepared.iterdir()}
    assert names == {shard["name"] for part in finished for shard in part["shards"]}

    opened.num_images, opened.look = 0, lambda: None
    workplace.prepare()
    assert opened.num_images == workplace.num_images - num_finished
    never_interrupted = Workplace(tmp_path / "other")
    never_interrupted.prepare()
    assert files_in(workplace.prepared) == files_in(never_interrupted.prepared)


def test_one_per_cent_of_new_images_prepares_anew_only_their_shards(tmp_path, opened):
    workplace = Workplace(tmp_path, num_images=2000)
    workplace.prepare()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in workplace.parts.iterdir()}
    raw = {path.stem for path in workplace.raw.glob("*.parquet")}
    # Of 4,000 images, in one of two classes, as a new batch of files is named.
    new = {f"dog/9{number:03d}.ppm": ppm(noise(8, 8, (7, number))) for number in range(40)}
    write(tmp_path / "source", new)
    ingest(workplace.config, workplace.raw, tmp_path / "state.json")
    changed = sorted({path.stem for path in workplace.raw.glob("*.parquet")} - raw)
    num_changed = sum(pq.read_metadata(workplace.raw / f"{stem}.parquet").num_rows for stem in changed)

    opened.num_images = 0
    assert workplace.prepare().num_images == 4040
    # They follow each other by name, and a shard holds 256 in the mean: they are in one shard, or a cut is among them.
    assert 1 <= len(changed) <= 2
    assert opened.num_images == num_changed < workplace.num_images / 2
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in workplace.parts.iterdir()}
    assert {name for name, state in after.items() if before.get(name) != state} == {f"{stem}.json" for stem in changed}

    fresh = tmp_path / "fresh"
    ingest(workplace.config, fresh / "raw", fresh / "state.json")
    prepare(workplace.config, fresh / "raw", fresh / "prepared", fresh / "parts")
    assert files_in(workplace.prepared) == files_in(fresh / "prepared")


def test_there_is_no_manifest_while_images_are_prepared(workplace, opened):
    seen = []
    for _ in range(2):
        workplace.prepare()
        assert (workplace.prepared / "manifest.json").is_file()
        for record in workplace.parts.iterdir():
            record.unlink()
        opened.look = lambda: seen.append((workplace.prepared / "manifest.json").exists())
    assert seen == [False] * workplace.num_images


def damage(path, how):
    content = path.read_bytes()
    path.unlink()
    if how != "removed":
        path.write_bytes(content[:-1] if how == "cut off" else content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("how", ["altered", "cut off", "removed"])
def test_a_damaged_shard_is_noticed_and_prepared_again(workplace, opened, how):
    manifest = workplace.prepare()
    before = files_in(workplace.prepared)
    shard = manifest.shards[0]
    damage(workplace.prepared / shard.name, how)
    with pytest.raises(
        UserError, match=f"{shard.name} is missing or was altered .* prepare it again with `convoy data"
    ):
        verify(workplace.prepared, manifest)
    if how != "altered":  # nothing is read when the shards are opened
        with pytest.raises(UserError, match=r"prepared is damaged \(.*\): prepare the images again with `convoy data"):
            PreparedImages(workplace.prepared, manifest, shard.split)
    opened.num_images = 0
    workplace.prepare()
    assert files_in(workplace.prepared) == before
    verify(workplace.prepared, manifest)
    # The part of that shard, and no other.
    assert 0 < opened.num_images < workplace.num_images


def test_labels_that_do_not_belong_to_the_images_are_noticed(workplace):
    manifest = workplace.prepare()
    path = workplace.prepared / "train-labels.npy"
    labels = np.load(path)
    for wrong in (labels[:-1], np.append(labels, 0), np.ones_like(labels), labels - 1, labels + 1):
        np.save(path, wrong)
        with pytest.raises(UserError, match=r"prepared is damaged \(.*\): prepare the images again"):
            PreparedImages(workplace.prepared, manifest, "train")
    damage(path, "removed")
    with pytest.raises(UserError, match=r"prepared is damaged \(.*train-labels.npy.*\): prepare the images again"):
        PreparedImages(workplace.prepared, manifest, "train")


@pytest.mark.parametrize("content", [b"", b"{", b'{"name": "of another version"}'])
def test_a_record_that_cannot_be_read_is_none(workplace, opened, content):
    workplace.prepare()
    before = files_in(workplace.prepared)
    next(workplace.parts.glob("*.json")).write_bytes(content)
    workplace.prepare()
    assert files_in(workplace.prepared) == before
    assert workplace.num_images < opened.num_images < 2 * workplace.num_images


def test_what_a_killed_process_left_is_removed(workplace):
    workplace.prepare()
    before = files_in(workplace.prepared)
    write(workplace.prepared, {".train-0123456789abcdef.npy.tmp": b"half", ".manifest.json.tmp": b"half"})
    write(workplace.parts, {".0123456789abcdef.json.tmp": b"half"})
    workplace.prepare()
    assert files_in(workplace.prepared) == before
    assert not list(workplace.parts.glob(".*"))


# As many processes as there are shards, whatever their size, on any machine.
STAGE = """
from data.preparing import stage, workers
from data.stages import run_stage
workers.BYTES_PER_PROCESS, workers.num_cores = 1, lambda: 3
run_stage(stage.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_stage_takes_its_processes_along_and_goes_on_where_it_was(tmp_path, blow):
    workplace = Workplace(tmp_path / "data", num_images=4000)
    params = tmp_path / "outputs" / "data-params.json"
    params.parent.mkdir()
    params.write_text(json.dumps({"prepare": workplace.config.model_dump(mode="json")}))
    finished = tmp_path / "outputs" / "prepare-parts"
    with (tmp_path / "stderr").open("wb") as stderr:
        stage = subprocess.Popen(
            [sys.executable, "-c", STAGE],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=stderr,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while not list(finished.glob("[!.]*.json")) and time.monotonic() < deadline:
            time.sleep(0.001)
        processes = psutil.Process(stage.pid).children(recursive=True)
        # Ctrl-C reaches every process of the terminal; a kill only the one.
        os.kill(stage.pid, blow) if blow == signal.SIGKILL else os.killpg(stage.pid, blow)
        assert stage.wait(30) == (-signal.SIGKILL if blow == signal.SIGKILL else 130)
    assert len(processes) >= 3
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
    assert b"Traceback" not in (tmp_path / "stderr").read_bytes()
    assert not (tmp_path / "data" / "prepared" / "manifest.json").exists()
    done = len(list(finished.glob("[!.]*.json")))
    assert 0 < done < workplace.num_shards
    if blow == signal.SIGINT:
        assert not list((tmp_path / "data" / "prepared").glob(".*"))

    kept = {path.name: path.stat().st_mtime_ns for path in finished.glob("[!.]*.json")}
    workplace.prepared, workplace.parts = tmp_path / "data" / "prepared", finished
    verify(workplace.prepared, workplace.prepare())
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in finished.glob("*.json")}.items()
    assert read_data_manifest(workplace.prepared).num_images == workplace.num_images
