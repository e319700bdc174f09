"""Real git and DVC repositories; what runs a stage takes seconds and is slow, but for the one first run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from images import files_in, photos, write

from data import versioning
from data.config import DataConfig
from data.errors import UserError
from data.ingest import STATE_FILE
from data.manifest import read_manifest

ROOT = Path(__file__).parents[1]
UNCHANGED = "source, parameters and code are unchanged"


def make_workspace(folder):
    """What a clone holds of this room."""
    for path in [*ROOT.glob("data/*.py"), *(ROOT / name for name in ("dvc.yaml", ".dvcignore", ".gitignore"))]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    write(folder, {name: (ROOT / name).read_bytes() for name in (".dvc/config", ".dvc/.gitignore")})
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("source"), photos(60))


@pytest.fixture(scope="module")
def first(tmp_path_factory, source):
    """A workspace after its first run, and what the run said; not to be changed."""
    workspace = make_workspace(tmp_path_factory.mktemp("first"))
    return workspace, versioning.reproduce(workspace, DataConfig(source="folder", path=source))


@pytest.fixture
def config(source):
    return DataConfig(source="folder", path=source)


@pytest.fixture
def workspace(first, tmp_path):
    """A copy of it."""
    return shutil.copytree(first[0], tmp_path / "workspace", symlinks=True)


def said(outcomes):
    return [(outcome.stage, outcome.ran, outcome.reason) for outcome in outcomes]


def test_the_first_run(first):
    workspace, outcomes = first
    assert said(outcomes) == [("ingest", True, "it has not run before"), ("prepare", True, "it has not run before")]
    assert read_manifest(workspace / "data" / "prepared").num_images == 120


def test_nothing_runs_twice(first, config):
    workspace, _ = first
    before = files_in(workspace / "data")
    assert said(versioning.reproduce(workspace, config)) == [
        ("ingest", False, UNCHANGED),
        ("prepare", False, UNCHANGED),
    ]
    assert said(versioning.reproduce(workspace, config, "ingest")) == [("ingest", False, UNCHANGED)]
    # Where images are prepared changes nothing of them.
    elsewhere = config.model_copy(update={"scheduler": "tcp://127.0.0.1:9"})
    assert {outcome.ran for outcome in versioning.reproduce(workspace, elsewhere)} == {False}
    assert files_in(workspace / "data") == before


def test_the_version_is_what_dvc_keeps(first):
    workspace, _ = first
    version = versioning.data_version(workspace)
    assert (
        f"    - path: data/prepared\n      hash: md5\n      md5: {version}.dir\n"
        in (workspace / "dvc.lock").read_text()
    )
    # DVC's list of the files lies in its cache under that name.
    assert (workspace / ".dvc" / "cache" / "files" / "md5" / version[:2] / f"{version[2:]}.dir").is_file()


def test_pushing_copies_what_is_new(workspace):
    cached = files_in(workspace / ".dvc" / "cache" / "files").keys()
    assert versioning.push(workspace) == len(cached) > 4
    assert files_in(workspace / "outputs" / "dvc-remote" / "files").keys() == cached
    assert versioning.push(workspace) == 0


def test_there_is_no_version_before_the_first_run(tmp_path):
    assert versioning.data_version(make_workspace(tmp_path)) is None


def test_a_workspace_without_git(tmp_path, config):
    workspace = make_workspace(tmp_path)
    shutil.rmtree(workspace / ".git")
    (workspace / "dvc.lock").touch()
    for use in (versioning.push, versioning.data_version, lambda path: versioning.reproduce(path, config)):
        with pytest.raises(UserError, match=rf"^{workspace} is no git repository, .*: type `git init`, or go without"):
            use(workspace)
    assert not (workspace / "data" / "raw").exists()


def test_a_workspace_without_dvc(tmp_path, config):
    workspace = make_workspace(tmp_path)
    shutil.rmtree(workspace / ".dvc")
    with pytest.raises(UserError, match=r"has no .dvc folder: type convoy in the folder that you cloned$"):
        versioning.reproduce(workspace, config)


def test_an_unusable_source_is_told_before_anything_runs(workspace):
    (workspace / "empty").mkdir()
    before = files_in(workspace)
    for folder, message in (("nowhere", "nowhere' does not exist"), ("empty", "holds no images in class folders")):
        with pytest.raises(UserError, match=message):
            versioning.reproduce(workspace, DataConfig(source="folder", path=folder))
    assert files_in(workspace) == before


@pytest.mark.parametrize("name", ["dvc.lock", "dvc.yaml"])
def test_a_merge_conflict_is_told_and_left_alone(workspace, config, name):
    conflict = b"<<<<<<< HEAD\n" + (workspace / name).read_bytes()
    (workspace / name).write_bytes(conflict)
    with pytest.raises(UserError, match=rf"^DVC: unable to read: '.*{name}', YAML file structure is corrupted: .*$"):
        versioning.reproduce(workspace, config)
    assert (workspace / name).read_bytes() == conflict
    assert not list(workspace.glob(".*.tmp"))


def test_a_remote_that_cannot_be_written(workspace):
    write(workspace, {"outputs/dvc-remote": b"a file where a folder should be"})
    with pytest.raises(UserError, match=r"^DVC: .*Not a directory: .*dvc-remote") as error:
        versioning.push(workspace)
    assert "\n" not in str(error.value)


def test_the_environment_is_as_before(first, config, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    before = dict(os.environ)
    versioning.reproduce(first[0], config)
    assert os.environ == before


@pytest.mark.slow
def test_only_what_has_changed_runs(workspace, config):
    smaller = config.model_copy(update={"size": 28})
    assert said(versioning.reproduce(workspace, smaller)) == [
        ("ingest", False, UNCHANGED),
        ("prepare", True, "data.size 32 -> 28"),
    ]
    assert read_manifest(workspace / "data" / "prepared").size == 28

    with (workspace / "data" / "splits.py").open("a") as code:
        code.write("# another comment\n")
    assert said(versioning.reproduce(workspace, smaller))[1] == ("prepare", True, "data/splits.py modified")

    # A limit that no file comes near: read again, and found the same.
    limited = smaller.model_copy(update={"max_file_mb": 1})
    assert said(versioning.reproduce(workspace, limited)) == [
        ("ingest", True, "data.max_file_mb 64.0 -> 1.0"),
        ("prepare", False, UNCHANGED),
    ]
    shutil.rmtree(workspace / "data" / "prepared")
    assert said(versioning.reproduce(workspace, limited))[1] == ("prepare", True, "data/prepared is missing or altered")


@pytest.mark.slow
def test_a_changed_source_is_another_version(first, tmp_path, source):
    own = shutil.copytree(source, tmp_path / "workspace" / "photos")
    workspace = make_workspace(tmp_path / "workspace")
    config = DataConfig(source="folder", path="photos")  # relative to the workspace
    versioning.reproduce(workspace, config)
    version = versioning.data_version(workspace)
    # Equal images are equal data, wherever they lie.
    assert version == versioning.data_version(first[0])

    write(own, {"cat/new.ppm": photos(1, seed=1)["cat/0000.ppm"]})
    assert said(versioning.reproduce(workspace, config)) == [
        ("ingest", True, "the source has changed"),
        ("prepare", True, "what it depends on has changed"),
    ]
    assert versioning.data_version(workspace) != version

    (own / "cat" / "new.ppm").unlink()
    versioning.reproduce(workspace, config)
    assert versioning.data_version(workspace) == version


@pytest.mark.slow
def test_what_a_stage_says_arrives_as_one_line(workspace, tmp_path, capfd):
    broken = write(tmp_path / "broken", {**photos(20), "ape/1.jpg": b"x", "ape/2.jpg": b"x"})
    message = r"^class 'ape' has no usable image among 2, the first is 'ape/1.jpg' \(not an image\): .*$"
    with pytest.raises(UserError, match=message) as error:
        versioning.reproduce(workspace, DataConfig(source="folder", path=broken))
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)
    assert "Traceback" not in "".join(capfd.readouterr())


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
        # A shard is finished when it is noted, a moment after it is there.
        states = workspace / STATE_FILE
        deadline = time.monotonic() + 60
        while not (states.is_file() and states.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 77
    assert b"Traceback" not in (tmp_path / "output").read_bytes()
    assert not list(workspace.glob("data/raw/.*"))
    known = [name for line in states.read_text().splitlines() for name in json.loads(line)]
    kept = {name: (workspace / "data" / "raw" / name).stat().st_mtime_ns for name in known}
    assert kept
    versioning.reproduce(workspace, DataConfig(source="folder", path=many))
    assert read_manifest(workspace / "data" / "prepared").num_images == 4000
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
    with pytest.raises(UserError, match=r"^the disk of .* is full: free some space and run the same command again"):
        versioning.reproduce(workspace, config)
    assert capfd.readouterr().err == ""
    assert not list(workspace.glob("data/*/.*"))
    versioning.data_version(workspace)  # raises where DVC has left half a dvc.lock
    kept = {path.name: path.stat().st_mtime_ns for path in workspace.glob("data/raw/*.parquet")}

    small_disk("200m")
    versioning.reproduce(workspace, config)
    assert read_manifest(workspace / "data" / "prepared").num_images == 240
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in workspace.glob("data/raw/*.parquet")}.items()
    assert versioning.push(workspace) > 4


@pytest.mark.slow
def test_a_full_remote_is_told(small_disk, workspace):
    remote = small_disk("64k")
    (workspace / "outputs" / "dvc-remote").symlink_to(remote)
    with pytest.raises(UserError, match=r"^the disk of .* is full: free some space"):
        versioning.push(workspace)
    small_disk("64m")
    assert versioning.push(workspace) > 0
