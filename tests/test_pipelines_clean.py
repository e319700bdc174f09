"""`convoy clean`: what is old goes, what is referred to stays."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_pipelines_commands import convoy

from core.errors import UserError
from models.training.unfinished import journal_file, run_note
from pipelines.config import Config
from pipelines.operations import clean as cleaning
from pipelines.operations.clean import TRASH, clean
from pipelines.workspace import CHECKPOINTS, LEDGER, open_registry, open_tracking
from serving.rollout import ledger
from serving.rollout.ledger import Entry, Release

MONTHS = 100 * 86_400
KEEP_A_MONTH = Config.model_validate({"retention": {"checkpoints_days": 30, "features_days": 30, "runs_days": 30}})


def put(path: Path, size: int = 1000, seconds: float = MONTHS) -> Path:
    """Write a file that is so old, in a folder that is as old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    when = time.time() - seconds
    for one in (path, path.parent):
        os.utime(one, (when, when))
    return path


def put_bento(version: str, run_id: str, day: int) -> Path:
    labels = {"target": "cpu", "precision": "fp32", "model_name": "m", "model_version": version}
    lines = [f"  {name}: '{value}'" for name, value in (labels | {"run_id": run_id, "data_version": "d"}).items()]
    path = Path(f"outputs/bentoml/bentos/m/{version}-cpu/bento.yaml")
    path.parent.mkdir(parents=True)
    when = f"2026-01-{day:02}T00:00:00+00:00"
    head = [f"name: m\nversion: {version}-cpu\ncreation_time: '{when}'\nlabels:"]
    path.write_text("\n".join([*head, *lines]))
    return path.parent


def removed(config: Config, *, dry_run: bool = False) -> list[tuple[str, str, int]]:
    return [(one.kind, one.name, one.num_bytes) for one in clean(config, dry_run=dry_run)]


def test_what_a_user_could_miss_stays_by_default(workspace):
    kept = [put(CHECKPOINTS / "a" / "last.ckpt"), put(Path("outputs/features/f/1.npz")), put(CHECKPOINTS / "a.run")]
    kept += [put_bento("1", "r1", 1), put(Path("outputs/prefect-server.log"), seconds=60)]
    assert removed(Config()) == []
    old_log = put(Path("outputs/mlflow-server.log"), 7)
    put(Path("outputs/samples/2025-11-30-m-v1.npz"), 5)
    assert removed(Config()) == [("samples", "2025-11-30-m-v1.npz", 5), ("log", "mlflow-server.log", 7)]
    assert not old_log.exists()
    assert all(path.exists() for path in kept)


def test_old_features_and_checkpoints_go_and_new_ones_stay(workspace):
    put(CHECKPOINTS / "old" / "last.ckpt", 10)
    (CHECKPOINTS / "old" / "best.ckpt").hardlink_to(CHECKPOINTS / "old" / "last.ckpt")
    put(CHECKPOINTS / "old" / "last.ckpt", 10)
    put(run_note(CHECKPOINTS / "old"), 3)
    put(journal_file(CHECKPOINTS / "old"), 2)
    put(CHECKPOINTS / "new" / "last.ckpt", seconds=0)
    put(Path("outputs/features/f/1.npz"), 5)
    os.utime("outputs/features", None)
    expected = [("checkpoints", "old", 15), ("features", "f", 5)]
    assert removed(KEEP_A_MONTH, dry_run=True) == expected
    assert (CHECKPOINTS / "old").is_dir()
    assert removed(KEEP_A_MONTH) == expected
    assert [path.name for path in CHECKPOINTS.iterdir()] == ["new"]
    assert removed(KEEP_A_MONTH) == []


def test_of_a_run_in_the_ledger_the_best_checkpoint_stays(workspace):
    for name in ("best.ckpt", "last.ckpt", "previous.ckpt"):
        put(CHECKPOINTS / "key" / name)
    put(run_note(CHECKPOINTS / "key")).write_text("r1")
    ledger.append(LEDGER, Entry(what="refuse", to=Release(model_name="m", run_id="r1"), why="gate"))
    assert removed(KEEP_A_MONTH) == [("checkpoints", "key", 2000)]
    assert [path.name for path in (CHECKPOINTS / "key").iterdir()] == ["best.ckpt"]


def test_of_bentos_the_newest_stay_and_those_that_are_served_or_were_live(workspace):
    folders = {version: put_bento(version, f"r{version}", int(version)) for version in "12345"}
    was_live = Release(model_name="m", run_id="r2", image="convoy/m:2-cpu")
    ledger.append(LEDGER, Entry(what="promote", to=was_live, why="by hand"))
    (folders["3"] / "src").mkdir()
    server = subprocess.Popen(
        [sys.executable, "-c", "input()"], cwd=folders["3"] / "src", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    two = Config.model_validate({"retention": {"bentos": 1}})
    try:
        gone = removed(two)
    finally:
        server.communicate(b"\n")
    expected = ["m:4-cpu", "m:1-cpu"] if Path("/proc/self/cwd").exists() else ["m:4-cpu", "m:3-cpu", "m:1-cpu"]
    assert [name for _, name, _ in gone] == expected
    assert not folders["1"].exists()
    assert folders["2"].is_dir()


def test_a_killed_clean_is_finished_by_the_next(workspace, monkeypatch):
    put(Path("outputs/features/f/1.npz"), 5)

    def die(_path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cleaning.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            clean(KEEP_A_MONTH, dry_run=False)
    assert not Path("outputs/features/f").exists()
    assert len(list(TRASH.iterdir())) == 1
    assert [kind for kind, _, _ in removed(KEEP_A_MONTH)] == ["leftover"]
    assert list(TRASH.iterdir()) == []


def test_nothing_goes_where_the_ledger_was_altered(workspace):
    features = put(Path("outputs/features/f/1.npz"))
    for why in ("one", "two"):
        ledger.append(LEDGER, Entry(what="promote", to=Release(model_name="m", run_id="r1"), why=why))
    LEDGER.write_text(LEDGER.read_text().replace("one", "1"))
    with pytest.raises(UserError, match="nothing is removed, because the ledger was altered"):
        clean(KEEP_A_MONTH, dry_run=False)
    assert features.exists()


def test_the_command_says_what_and_how_much(workspace):
    put(Path("outputs/features/f/1.npz"), 1_500_000)
    said = convoy("clean", "--dry-run", "--set", "retention.features_days=30").stdout
    assert said == "features          1.5 MB  f: written 100 days ago\nwould free 1.5 MB\n"
    assert Path("outputs/features/f/1.npz").exists()


@pytest.mark.slow
def test_runs_go_that_nobody_refers_to(workspace, prepared):
    shutil.copytree(prepared, "data/prepared")
    tracking = open_tracking(KEEP_A_MONTH)
    registry = open_registry(KEEP_A_MONTH)
    past = time.time() - MONTHS
    runs = {}
    for name in ("nobody's", "parent", "child", "registered", "told", "new", "running"):
        run = tracking.client.create_run(tracking.experiment_id, start_time=int(past * 1000), run_name=name)
        runs[name] = run.info.run_id
        tracking.log(run.info.run_id).record({"of": name}, "notes")
        if name != "running":
            tracking.end(run.info.run_id, "FINISHED", time.time() if name in ("new", "child") else past)
    tracking.log(runs["child"]).tag({"mlflow.parentRunId": runs["parent"]})
    registry._client.create_registered_model("another")
    registry._client.create_model_version("another", "runs:/x/model", run_id=runs["registered"])
    ledger.append(LEDGER, Entry(what="refuse", to=Release(model_name="m", run_id=runs["told"]), why="gate"))
    artifacts = Path(tracking.client.get_run(runs["nobody's"]).info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_dir()
    assert [(kind, name) for kind, name, _ in removed(KEEP_A_MONTH)] == [("run", runs["nobody's"][:8])]
    assert not artifacts.exists()
    left = tracking.client.search_runs([tracking.experiment_id])
    assert {run.info.run_id for run in left} == set(runs.values()) - {runs["nobody's"]}
    assert removed(KEEP_A_MONTH) == []
