"""Runs whose process has died, or whose metrics have not all arrived: what the next command makes of them."""

import logging
import os
from uuid import uuid4

import pytest

from core.errors import UserError
from models.tracking.journal import Journal
from models.tracking.runs import TRAINED, Tracking
from models.training.unfinished import journal_file, run_note, settle_runs
from pipelines import workspace
from pipelines.config import Config
from pipelines.workspace import open_tracking

DIED = 1_700_000_000


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    return Tracking(f"sqlite:///{folder}/mlflow.db", "tests", folder / "artifacts")


def leave(tracking, folder, num_steps=3):
    """Leave a run as a killed training does: it is running in MLflow, and its metrics are on disk."""
    run_id = tracking.client.create_run(tracking.experiment_id).info.run_id
    checkpoints = folder / run_id
    journal = Journal(journal_file(checkpoints))
    run_note(checkpoints).write_text(run_id)
    for step in range(num_steps):
        journal.append({"loss": step / 7}, step)
    os.utime(journal.path, (DIED, DIED))
    return run_id, journal.path


def status(tracking, run_id):
    return tracking.client.get_run(run_id).info.status


def steps(tracking, run_id):
    return [step for step, _ in tracking.log(run_id).history(["loss"])["loss"]]


def test_a_run_whose_process_died_is_ended_and_resumed_under_its_id(tracking, tmp_path, caplog):
    caplog.set_level(logging.INFO, "convoy")
    run_id, journal = leave(tracking, tmp_path)
    for _ in range(2):
        settle_runs(tracking, tmp_path)
    assert caplog.messages == [
        f"train: run {run_id[:8]} has ended as FAILED: its process died; the same command resumes it"
    ]
    info = tracking.client.get_run(run_id).info
    assert (info.status, info.end_time) == ("FAILED", DIED * 1000)
    assert steps(tracking, run_id) == [0, 1, 2]
    assert journal.is_file()
    with tracking.open_run(run_id, "ignored", None) as log:
        assert log.run_id == run_id
        assert status(tracking, run_id) == "RUNNING"
    assert status(tracking, run_id) == "FINISHED"


def test_metrics_that_a_finished_training_has_left_are_sent(tracking, tmp_path):
    run_id, journal = leave(tracking, tmp_path)
    tracking.log(run_id).send([point for line in Journal(journal).read(0) for point in line.points][:1])
    tracking.log(run_id).tag({TRAINED: "true"})
    tracking.end(run_id, "FINISHED")
    settle_runs(tracking, tmp_path)
    assert (status(tracking, run_id), steps(tracking, run_id)) == ("FINISHED", [0, 1, 2])
    assert not journal.is_file()


def test_what_cannot_be_settled_stands_in_nobodys_way(tracking, tmp_path, monkeypatch, caplog):
    deleted, _ = leave(tracking, tmp_path)
    tracking.client.delete_run(deleted)
    run_note(tmp_path / "unknown").write_text("no such run")
    journal_file(tmp_path / "unknown").touch()
    journal_file(tmp_path / "without a note").touch()
    settle_runs(tracking, tmp_path)
    assert caplog.messages == []
    run_id, journal = leave(tracking, tmp_path)

    def away(*_):
        raise UserError("MLflow at http://localhost does not answer")

    monkeypatch.setattr("models.tracking.runs.RunLog.send", away)
    settle_runs(tracking, tmp_path)
    assert caplog.messages == [
        f"train: the metrics in {journal} still wait: MLflow at http://localhost does not answer"
    ]
    assert status(tracking, run_id) == "RUNNING"


def test_a_worker_ends_what_died_but_nothing_that_may_be_alive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workspace.settle_runs(Config())
    assert list(tmp_path.iterdir()) == []
    tracking = open_tracking(Config())
    run_id, _ = leave(tracking, workspace.CHECKPOINTS)
    with workspace.exclusive():
        workspace.settle_runs(Config())
        assert status(tracking, run_id) == "RUNNING"
    workspace.settle_runs(Config())
    assert status(tracking, run_id) == "FAILED"


@pytest.mark.slow
def test_prefect_ends_the_run_of_a_flow_whose_process_crashed(tmp_path, monkeypatch):
    from prefect.client.schemas.objects import FlowRun
    from prefect.states import Crashed

    from pipelines.flows import run_pipeline, train_model

    monkeypatch.chdir(tmp_path)
    for flow in (run_pipeline, train_model):
        tracking = open_tracking(Config())
        run_id, _ = leave(tracking, workspace.CHECKPOINTS)
        crashed = FlowRun(flow_id=uuid4(), parameters={"config": Config().model_dump(mode="json")})
        hook, *_ = flow.on_crashed_hooks
        hook(flow, crashed, Crashed())
        assert status(tracking, run_id) == "FAILED"
