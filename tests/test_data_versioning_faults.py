"""What is left in a workspace, and what is said, when a run is interrupted or its disk is full."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from images import photos, write
from workspaces import make_workspace

from core.errors import UserError
from data import versioning
from data.config import DataConfig
from data.ingest.shard_states import read_states
from data.ingest.stage import STATE_FILE
from data.manifest import read_data_manifest

DISK_FULL = r"^the disk of .* is full: free some space and run the same command again"


# Slow enough to be met by a Ctrl-C, as the terminal sends it: to every process.
INTERRUPTED = """
import sys
from pathlib import Path
from data import versioning
from data.config import DataConfig
try:
    versioning.reproduce(Path(), DataConfig(source="folder", path=sys.argv[1]))
except KeyboardInterrupt:
    sys.exit(77)
"""


@pytest.mark.slow
def test_an_interrupted_stage_is_an_interruption(tmp_path):
    workspace = make_workspace(tmp_path / "workspace")
    many = write(tmp_path / "many", photos(2000, width=8, height=8))
    with (tmp_path / "output").open("wb") as output:
        command = [sys.executable, "-c", INTERRUPTED, str(many)]
        process = subprocess.Popen(command, cwd=workspace, stdout=output, stderr=output, start_new_session=True)
        # A shard is noted a moment before it is in its place.
        states = workspace / STATE_FILE
        deadline = time.monotonic() + 60
        while not (states.is_file() and states.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 77
    assert b"Traceback" not in (tmp_path / "output").read_bytes()
    assert not list(workspace.glob("data/raw/.*"))
    kept = {name: (workspace / "data" / "raw" / name).stat().st_mtime_ns for name in read_states(states)}
    assert kept
    versioning.reproduce(workspace, DataConfig(source="folder", path=many))
    assert read_data_manifest(workspace / "data" / "prepared").num_images == 4000
    assert kept == {name: (workspace / "data" / "raw" / name).stat().st_mtime_ns for name in kept}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a given size, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        options = ["-o", f"{'remount,' if os.path.ismount(folder) else ''}size={size}"]
        try:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, check=False
            )
        except FileNotFoundError:
            pytest.skip("there is no mount")
        if done.returncode:
            pytest.skip("only root may mount a small disk")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


# 240 images of 108 x 108 pixels are 8.4 MB, and as much again in DVC's cache, as prepared arrays, and in the cache.
@pytest.mark.slow
@pytest.mark.parametrize("size", ["4m", "12m", "20m", "28m"])
def test_a_full_disk_is_told_and_what_was_made_is_kept(small_disk, tmp_path, capfd, size):
    source = write(tmp_path / "source", photos(120, width=108, height=108))
    config = DataConfig(source="folder", path=source, size=108)
    workspace = make_workspace(small_disk(size))
    with pytest.raises(UserError, match=DISK_FULL):
        versioning.reproduce(workspace, config)
    assert capfd.readouterr().err == ""
    assert not list(workspace.glob("data/*/.*"))
    versioning.data_version(workspace)  # raises where DVC has left half a dvc.lock
    kept = {path.name: path.stat().st_mtime_ns for path in workspace.glob("data/raw/*.parquet")}

    small_disk("200m")
    versioning.reproduce(workspace, config)
    assert read_data_manifest(workspace / "data" / "prepared").num_images == 240
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in workspace.glob("data/raw/*.parquet")}.items()
    assert versioning.push(workspace) > 4


# DVC writes its table of who uses which file in place, before and after each step.
@pytest.mark.slow
@pytest.mark.parametrize(("written", "is_told"), [(1, True), (7, True), (21, True), (7, False)])
def test_a_disk_that_ends_in_a_table_of_dvc_is_told_and_the_table_made_anew(tmp_path, monkeypatch, written, is_told):
    source = write(tmp_path / "source", photos(60))
    config = DataConfig(source="folder", path=source)
    workspace = make_workspace(tmp_path / "workspace")
    whole = itertools.chain(itertools.repeat(True, written), itertools.repeat(False))

    def cut_off(value, file):
        text = json.dumps(value)
        if next(whole):
            file.write(text)
            return
        file.write(text[:1])
        if is_told:  # otherwise DVC meets the half of a table later
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("json.dump", cut_off)
        with pytest.raises(UserError, match=DISK_FULL):
            versioning.reproduce(workspace, config)
    assert (workspace / ".dvc" / "tmp" / "rwlock").read_text() == "{"

    versioning.reproduce(workspace, config)
    assert read_data_manifest(workspace / "data" / "prepared").num_images == 120


@pytest.mark.slow
def test_a_full_remote_is_told(small_disk, tmp_path):
    workspace = make_workspace(tmp_path / "workspace")
    source = write(tmp_path / "source", photos(60))
    versioning.reproduce(workspace, DataConfig(source="folder", path=source))
    (workspace / "outputs" / "dvc-remote").parent.mkdir(exist_ok=True)
    (workspace / "outputs" / "dvc-remote").symlink_to(small_disk("64k"))
    with pytest.raises(UserError, match=DISK_FULL):
        versioning.push(workspace)
    small_disk("64m")
    assert versioning.push(workspace) > 0
