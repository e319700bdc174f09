"""`convoy backup` and `convoy restore`: a project that was wiped is there again."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from test_pipelines_commands import convoy, told

from core.errors import UserError
from models.tracking.database import copy_database, move_artifacts
from pipelines.config import Config
from pipelines.operations.backup import MANIFEST, back_up, removing
from pipelines.operations.clean import clean
from pipelines.operations.restore import RESTORING, restore
from pipelines.workspace import LEDGER, exclusive
from serving.rollout import chain, ledger
from serving.rollout.ledger import Entry, Release

DATABASE = Path("outputs/mlflow/mlflow.db")


def fill(workspace: Path) -> None:
    """Put in it what runs would have left."""
    DATABASE.parent.mkdir(parents=True)
    uri = (workspace / "outputs/mlflow/artifacts").as_uri()
    with closing(sqlite3.connect(DATABASE)) as connection, connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE runs (run_uuid TEXT, artifact_uri TEXT)")
        connection.executemany("INSERT INTO runs VALUES (?, ?)", [("r1", f"{uri}/1/r1"), ("r2", "s3://elsewhere")])
    for name, text in {
        "outputs/mlflow/artifacts/1/r1/model.onnx": "weights",
        "outputs/mlflow/artifacts/1/.half.tmp": "half",
        "outputs/dvc-remote/files/md5/ab/cd": "pixels",
        "outputs/receivers.json": "[]",
        "outputs/checkpoints/k/last.ckpt": "state",
        "networks/mine.py": "of the user",
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    ledger.append(LEDGER, Entry(what="promote", to=Release(model_name="m", run_id="r1"), why="good"))


@pytest.fixture
def backup(workspace, tmp_path) -> Path:
    fill(workspace)
    back_up(tmp_path / "backup")
    return tmp_path / "backup"


def wipe(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def files(folder: Path) -> dict[str, bytes]:
    found = subprocess.run(["git", "ls-files", "-co"], cwd=folder, capture_output=True, text=True, check=True).stdout
    return {name: (folder / name).read_bytes() for name in found.split() if not name.startswith("outputs/")}


def test_a_wiped_project_is_there_again(workspace, backup):
    before = files(workspace)
    wipe(workspace)
    result = convoy("restore", backup)
    assert result.exit_code == 0, result.output
    assert files(workspace) == before
    assert Path("networks/mine.py").read_text() == "of the user"
    assert Path("outputs/mlflow/artifacts/1/r1/model.onnx").read_text() == "weights"
    assert Path("outputs/dvc-remote/files/md5/ab/cd").read_text() == "pixels"
    assert not Path("outputs/mlflow/artifacts/1/.half.tmp").exists()
    assert not Path("outputs/checkpoints").exists()
    assert not RESTORING.exists()
    assert chain.verify(LEDGER).faults == ()
    assert [entry.why for entry in ledger.read(LEDGER)] == ["good"]


def test_in_another_folder_runs_find_their_files(workspace, backup, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    restore(backup)
    with closing(sqlite3.connect(DATABASE)) as connection:
        found = dict(connection.execute("SELECT run_uuid, artifact_uri FROM runs"))
    assert found == {"r1": f"{other.as_uri()}/outputs/mlflow/artifacts/1/r1", "r2": "s3://elsewhere"}


def test_a_database_is_copied_as_it_is_at_one_moment(tmp_path):
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    with closing(sqlite3.connect(source)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE t (x)")
        writer.execute("INSERT INTO t VALUES (1)")
        writer.commit()
        writer.execute("INSERT INTO t VALUES (2)")
        copy_database(source, target)
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("SELECT x FROM t").fetchall() == [(1,)]
    move_artifacts(target, "file:///a", "file:///b")


def test_a_backup_is_made_while_another_command_works(workspace, tmp_path):
    fill(workspace)
    with exclusive():
        assert back_up(tmp_path / "backup").files


def test_nothing_is_cleaned_while_a_backup_is_made(workspace):
    with removing(waits=True, shared=True), pytest.raises(UserError, match="a backup of this project is being made"):
        clean(Config(), dry_run=False)


def test_a_backup_needs_a_new_folder_outside(workspace, backup):
    assert "is there already" in told(convoy("backup", backup), 2)
    assert "is inside the project" in told(convoy("backup", "outputs/backup"), 2)


def test_runs_on_a_server_are_not_ours_to_copy(workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@mlflow:5000")
    line = told(convoy("backup", tmp_path / "backup"), 2)
    assert "the runs are on the server mlflow:5000" in line


def alter_manifest(backup: Path, **content: object) -> None:
    path = backup / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda backup: (backup / MANIFEST).unlink(), "is no whole backup: backup.json is missing"),
        (lambda backup: (backup / MANIFEST).write_text("{"), "is damaged"),
        (lambda backup: (backup / "mlflow.db").unlink(), "is incomplete: mlflow.db is missing"),
        (lambda backup: (backup / "records/ledger.jsonl").write_text("{}"), "was altered: records/ledger.jsonl"),
        (lambda backup: alter_manifest(backup, format=2), "has format 2, and this Convoy reads 1"),
        (lambda backup: alter_manifest(backup, mlflow="99.1.0"), "was made with MLflow 99.1.0"),
        (shutil.rmtree, "is no whole backup"),
    ],
)
def test_a_backup_that_is_none_changes_nothing(workspace, backup, spoil, message):
    wipe(workspace)
    spoil(backup)
    assert message in told(convoy("restore", backup), 2)
    assert list(workspace.iterdir()) == []


def test_a_folder_with_runs_is_not_written_to(workspace, backup):
    assert "restore into a folder without runs" in told(convoy("restore", backup), 2)
    shutil.rmtree("outputs")
    Path("params.yaml").write_text("data: {size: 28}\n")
    assert "params.yaml differs from that of the backup" in told(convoy("restore", backup), 2)
    assert not DATABASE.exists()


def test_a_killed_restore_is_repeated(workspace, backup):
    wipe(workspace)
    Path("outputs").mkdir()
    RESTORING.touch()
    shutil.copy(backup / "mlflow.db", "outputs/half")
    LEDGER.write_text("half")
    restore(backup)
    assert chain.verify(LEDGER).faults == ()


def command(*arguments: object) -> str:
    """A process of its own: MLflow keeps a database open that is wiped here."""
    line = [sys.executable, "-c", "from pipelines.commands.main import main; main()", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_after_backup_wipe_and_restore_the_champion_serves(workspace, tmp_path):
    values = ["model.network=lenet5", "training.max_epochs=1", "gate.min_class_accuracy=null"]
    values += ["gate.better_than_guessing=false", "gate.max_calibration_error=1"]
    options = [f"--set={value}" for value in values]
    command("data", "prepare")
    command("train", *options)
    command("backup", tmp_path / "backup")
    wipe(workspace)
    command("restore", tmp_path / "backup")
    after = json.loads(command("status", "--json"))
    assert after["champion"]["version"] == "1"
    assert after["data"]["num_images"] > 1700
    assert command("package", *options).startswith("classifier:1-cpu-"), "its endpoint has answered"
    steps = {line.split()[0]: line.split()[1] for line in command("explain", *options).splitlines()}
    assert steps["ingest"] == steps["train"] == steps["verify"] == "skipped"
