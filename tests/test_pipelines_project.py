"""A project apart from the tool: `convoy init` makes one, and commands work in it from wherever they are typed."""

import subprocess

import pytest
from conftest import draw_classes
from test_pipelines_commands import convoy, told

from pipelines.config import Config, load_config
from serving.rollout.ledger import Entry, append


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Type commands in a folder that is no project; --project changes the folder of this process."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.split()


def test_a_new_project_holds_what_differs_from_the_defaults(tmp_path):
    photos = draw_classes(tmp_path / "photos", ["cat", "dog"], 3)
    result = convoy("init", tmp_path / "made", "--path", photos, "--set", "model.network=lenet5")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "made" / "params.yaml").read_text()
    assert [line for line in text.splitlines() if line and "#" not in line] == [
        *("data:", "  source: folder", f"  path: {photos}"),
        *("model:", "  network: lenet5"),
    ]
    config = load_config(tmp_path / "made" / "params.yaml")
    assert config == Config.model_validate(
        {"data": {"source": "folder", "path": photos}, "model": {"network": "lenet5"}}
    )


def test_a_new_project_is_a_git_repository_that_ignores_what_runs_make(tmp_path):
    convoy("init", tmp_path / "made")
    for name in ("outputs/lock", "data/raw/x.parquet", "data/prepared/x.npy", ".env", ".secrets/token"):
        assert git(tmp_path / "made", "check-ignore", name) == [name]
    assert sorted(git(tmp_path / "made", "ls-files", "--others", "--exclude-standard")) == sorted(
        [".dvc/.gitignore", ".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml"]
    )


def test_a_project_belongs_to_the_repository_that_it_is_in(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("/ignored/\n")
    convoy("init", tmp_path / "part")
    convoy("init", tmp_path / "ignored")
    assert not (tmp_path / "part" / ".git").exists()
    assert (tmp_path / "ignored" / ".git").exists(), "its versions are kept somewhere"


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / ".gitignore").write_text("/mine/\n")
    assert convoy("init", tmp_path / "made").exit_code == 0
    assert (tmp_path / "made" / ".gitignore").read_text().startswith("/mine/\n/.env\n")
    before = {path: path.read_bytes() for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert "has params.yaml" in told(convoy("init", tmp_path / "made", "--source", "cifar10"), 2)
    assert before == {path: path.read_bytes() for path in (tmp_path / "made").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--source", "folder"], "say --path PHOTOS too"),
        (["--source", "pictures"], "data.source = 'pictures'"),
        (["--path", "nowhere"], "does not exist"),
        (["--set", "model.netwrk=lenet5"], "did you mean network?"),
    ],
)
def test_a_project_that_cannot_work_is_not_made(tmp_path, options, words):
    assert words in told(convoy("init", tmp_path / "made", *options), 2)
    assert not (tmp_path / "made").exists()


def test_a_command_works_in_the_project_that_is_named(tmp_path, elsewhere):
    draw_classes(elsewhere / "photos", ["cat", "dog"], 20)
    assert convoy("init", "made", "--path", "photos").exit_code == 0
    result = convoy("--project", "made", "data", "ingest")
    assert result.exit_code == 0, result.output
    assert list((elsewhere / "made" / "data" / "raw").glob("*.parquet"))
    assert not (elsewhere / "outputs").exists()


def test_a_file_that_is_named_is_that_of_the_folder_where_the_command_was_typed(elsewhere):
    convoy("init", "made")
    (elsewhere / "empty").mkdir()
    assert f"{elsewhere / 'empty'} holds no images" in told(convoy("--project", "made", "predict", "empty"), 2)


def test_a_project_that_is_not_there(tmp_path):
    assert "make a project with `convoy init DIR`" in told(convoy("--project", tmp_path / "none", "status"), 2)


def test_changed_parameters_are_those_that_differ(tmp_path):
    convoy("init", tmp_path / "made", "--set", "training.max_epochs=3")
    found = convoy("--project", tmp_path / "made", "params", "--changed", "--set", "serving.port=4000").stdout
    assert [line for line in found.splitlines() if line and "#" not in line] == [
        *("training:", "  max_epochs: 3"),
        *("serving:", "  port: 4000"),
    ]


def test_a_project_without_a_stack_is_not_asked_what_is_live(elsewhere):
    convoy("init", "made")
    append(elsewhere / "made" / "outputs" / "ledger.jsonl", Entry(what="promote", why="by hand", by="me"))
    result = convoy("--project", "made", "status")
    assert (result.exit_code, "live" in result.output) == (0, False)
