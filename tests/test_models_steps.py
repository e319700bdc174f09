import time

import pytest
from checkpoints import steps_per_epoch, stop_at
from conftest import tiny_job

from core.errors import UserError
from data.batches.shards import PreparedImages
from models.config import GateConfig
from models.exported.predictor import OnnxPredictor
from models.judging.calibration import reliability_of
from models.judging.evaluate import predict
from models.steps import evaluate_run, export_run, train_run
from models.tracking.runs import Tracking
from models.tracking.sender import Sender
from models.training.unfinished import settle_runs


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def tracking(database, tmp_path, request):
    return Tracking(database, request.node.name, tmp_path / "artifacts")


def curves(tracking, run_id):
    """The points of each metric but the use of the machine, as (step, value)."""
    names = [name for name in tracking.get(run_id).metrics if not name.startswith("system/")]
    return tracking.log(run_id).history(names)


def test_an_interrupted_training_has_the_curves_of_one_that_was_not(prepared, tmp_path, monkeypatch, tracking):
    job = tiny_job(prepared, log_every_n_steps=1)
    whole = curves(tracking, train_run(tracking, job, tmp_path / "whole", None))
    # Epoch 1 is replayed up to its step 3, and so are its points.
    for batch in (3, 2):
        with monkeypatch.context() as patch:
            stop_at(patch, steps_per_epoch(job) + batch)
            with pytest.raises(KeyboardInterrupt):
                train_run(tracking, job, tmp_path / "stopped", None)
        assert (tmp_path / "stopped.metrics.jsonl").is_file()
    run_id = train_run(tracking, job, tmp_path / "stopped", None)
    assert curves(tracking, run_id) == whole
    assert [value for _, value in whole["epoch"]] == sorted(value for _, value in whole["epoch"])
    assert (len(whole["train/step_loss"]), len(whole["epoch"])) == (3 * steps_per_epoch(job), 3)
    assert {path.name for path in tmp_path.glob("stopped*")} == {"stopped", "stopped.run"}


def test_the_use_of_the_machine_is_measured_on(prepared, tmp_path, monkeypatch, tracking):
    monkeypatch.setattr(Sender, "interval", 0.02)
    job = tiny_job(prepared, max_epochs=100)
    stop_at(monkeypatch, 40 * steps_per_epoch(job) + 1)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_run(tracking, job, tmp_path / "stopped", None)
    (run,) = tracking.client.search_runs([tracking.experiment_id])
    history = tracking.log(run.info.run_id).history(["system/cpu_utilization_percentage"])
    (points,) = history.values()
    assert [step for step, _ in points] == list(range(len(points)))
    assert len(points) > 2


def test_metrics_that_do_not_arrive_fail_the_step_and_the_same_command_sends_them(
    prepared, tmp_path, monkeypatch, tracking
):
    job = tiny_job(prepared, max_epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "patience", 0.2)
        patch.setattr("models.tracking.runs.RunLog.send", away)
        with pytest.raises(UserError, match=r"does not answer; the training is kept, .* lines of metrics wait in"):
            train_run(tracking, job, tmp_path / "checkpoints", None)
    (run,) = tracking.client.search_runs([tracking.experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.metrics == {}
    # Nothing is trained again.
    stop_at(monkeypatch, 0)
    assert train_run(tracking, job, tmp_path / "checkpoints", None) == run.info.run_id
    assert tracking.get(run.info.run_id).metrics["val/accuracy"] > 0


def test_metrics_that_arrive_too_slowly_wait_and_the_training_ends_well(prepared, tmp_path, monkeypatch, tracking):
    job = tiny_job(prepared, max_epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "patience", 0.2)
        patch.setattr("models.tracking.runs.RunLog.send", lambda *_: time.sleep(1))
        run_id = train_run(tracking, job, tmp_path / "checkpoints", None)
    assert tracking.client.get_run(run_id).info.status == "FINISHED"
    assert tracking.find_trained(job.key).metrics == {}
    settle_runs(tracking, tmp_path)
    assert tracking.get(run_id).metrics["val/accuracy"] > 0
    assert not (tmp_path / "checkpoints.metrics.jsonl").is_file()


def away(*_):
    raise UserError("MLflow at http://localhost does not answer")


def sections_of_charts(metrics):
    """As MLflow's page of a run orders them: by name, and last the metrics without one; `system` has its own page."""
    return sorted({name.rpartition("/")[0] for name in metrics} - {"system"}, key=lambda name: (not name, name))


def test_what_is_exported_is_calibrated_and_knows_what_is_uncertain(prepared, tmp_path, tracking):
    job = tiny_job(prepared)
    run_id = train_run(tracking, job, tmp_path / "checkpoints", None)
    evaluate_run(tracking, job, run_id, tmp_path / "checkpoints")
    # Half right is enough here, for which ten validation images are.
    gate, exported = GateConfig(min_precision=0.5), tmp_path / "exported"
    export_run(tracking, job, run_id, tmp_path / "checkpoints", exported, "classifier", gate)
    model, metrics = OnnxPredictor(exported), tracking.get(run_id).metrics
    assert model.manifest.temperature == metrics["val/temperature"]
    assert sections_of_charts(metrics) == ["test", "train", "val", "variants", ""]
    assert metrics["test/parity_error"] < 1e-4
    images = PreparedImages(prepared, job.manifest, "test")
    predictions = predict(model, images, job.manifest.classes, job.input_size)
    assert reliability_of(predictions).error == pytest.approx(metrics["test/calibration_error"], abs=1e-3)
    certainty = model.manifest.certainty
    assert certainty.num_images == job.manifest.num_in("val")
    assert 0 <= certainty.threshold < 1
    assert 0 < certainty.coverage <= 1
