"""Real git and DVC repositories; what runs a stage takes seconds and is slow, but for the one first run."""

import hashlib
import os
import shutil
import time

import pytest
from images import files_in, photos, write
from workspaces import make_workspace

from core.errors import UserError
from data import versioning
from data.cache import unused_files
from data.config import DataConfig
from data.manifest import read_data_manifest

UNCHANGED = "source, parameters and code are unchanged"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("source"), photos(60))


@pytest.fixture(scope="module")
def first(tmp_path_factory, source):
    """A workspace after its first run, and what the run said; not to be changed."""
    workspace = make_workspace(tmp_path_factory.mktemp("first"))
    config, calls = DataConfig(source="folder", path=source), []
    outcomes = versioning.reproduce(
        workspace, config, meanwhile=lambda: calls.append((workspace / "data/raw").exists())
    )
    assert calls == [False], "called once, before the stages run"
    return workspace, outcomes


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
    assert read_data_manifest(workspace / "data" / "prepared").num_images == 120


def test_nothing_runs_twice(first, config):
    workspace, _ = first
    before = files_in(workspace / "data")
    assert said(versioning.reproduce(workspace, config, meanwhile=lambda: pytest.fail("called"))) == [
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
    with pytest.raises(UserError, match=r"has no .dvc folder: make a project with `convoy init DIR`$"):
        versioning.reproduce(workspace, config)


def test_an_unusable_source_is_told_before_anything_runs(workspace):
    (workspace / "empty").mkdir()
    before = files_in(workspace)
    for folder, message in (("nowhere", "nowhere' does not exist"), ("empty", "holds no images in class folders")):
        with pytest.raises(UserError, match=message):
            versioning.reproduce(workspace, DataConfig(source="folder", path=folder))
    assert files_in(workspace) == before


def test_a_malformed_decision_is_told_before_anything_runs(workspace, config):
    write(workspace, {"data/decisions.csv": b"sha256,decision\n\nabc,drop\n"})
    before = files_in(workspace)
    with pytest.raises(UserError, match=r"data/decisions.csv:3: 'abc' names no image: expected the SHA-256"):
        versioning.reproduce(workspace, config)
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
    assert read_data_manifest(workspace / "data" / "prepared").size == 28

    # A limit that no file comes near: read again, and found the same.
    limited = smaller.model_copy(update={"max_file_mb": 1})
    assert said(versioning.reproduce(workspace, limited)) == [
        ("ingest", True, "data.max_file_mb 64.0 -> 1.0"),
        ("prepare", False, UNCHANGED),
    ]
    shutil.rmtree(workspace / "data" / "prepared")
    assert said(versioning.reproduce(workspace, limited))[1] == ("prepare", True, "data/prepared is missing or altered")


@pytest.mark.slow
def test_decisions_are_another_version(workspace, config, source):
    version = versioning.data_version(workspace)
    digest = hashlib.sha256((source / "cat" / "0000.ppm").read_bytes()).hexdigest()
    write(workspace, {"data/decisions.csv": f"{digest},drop\n".encode()})
    changed = ("prepare", True, "data/decisions.csv has changed")
    assert said(versioning.reproduce(workspace, config))[1] == changed
    assert read_data_manifest(workspace / "data" / "prepared").num_images == 119
    assert versioning.data_version(workspace) != version
    assert said(versioning.reproduce(workspace, config))[1] == ("prepare", False, UNCHANGED)
    (workspace / "data" / "decisions.csv").unlink()
    assert said(versioning.reproduce(workspace, config))[1] == changed
    assert versioning.data_version(workspace) == version


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


def test_of_the_cache_only_what_the_remote_has_and_nothing_uses_can_go(workspace):
    later = time.time() + 60
    assert unused_files(workspace, later) == []
    lock = (workspace / "dvc.lock").read_text()
    (workspace / "dvc.lock").unlink()
    assert unused_files(workspace, later) == [], "the remote has nothing yet"
    (workspace / "dvc.lock").write_text(lock)
    versioning.push(workspace)
    assert unused_files(workspace, later) == []
    (workspace / "dvc.lock").unlink()
    found = unused_files(workspace, later)
    assert sum(file.num_bytes for file in found) == sum(file.path.stat().st_size for file in found) > 0
    assert unused_files(workspace, 0) == []
