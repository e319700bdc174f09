"""The same training on a busy machine, which may take longer and must not come out otherwise."""

import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
from checkpoints import assert_equal
from conftest import tiny_job
from test_models_steps import curves

from core.machine import num_cores
from data.config import DataConfig
from data.ingest.stage import ingest
from data.preparing.stage import prepare
from models.config import TrainingConfig
from models.steps import evaluate_run, train_run
from models.tracking.runs import Tracking
from models.training.job import BEST

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    config = DataConfig(source="digits", size=24)
    ingest(config, folder / "raw", folder / "state.json")
    prepare(config, folder / "raw", folder / "prepared", folder / "parts")
    return folder / "prepared"


@contextmanager
def busy_cores():
    """Two processes on each core that compute without end."""
    with ExitStack() as stack:
        for _ in range(2 * num_cores()):
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(other.kill)
        yield


def test_a_busy_machine_changes_neither_weights_nor_metrics(digits, tmp_path):
    # As a user's training: what is `auto` is decided anew each time.
    training = TrainingConfig(max_epochs=2, batch_size=32, accelerator="cpu", seed=3)
    job = replace(tiny_job(digits), training=training)
    tracking = Tracking(f"sqlite:///{tmp_path}/mlflow.db", "busy", tmp_path / "artifacts")

    def run(name):
        run_id = train_run(tracking, job, tmp_path / name, None)
        evaluate_run(tracking, job, run_id, tmp_path / name)
        return curves(tracking, run_id)

    quiet = run("quiet")
    with busy_cores():
        busy = run("busy")
    assert busy == quiet
    assert quiet["test/accuracy"][-1][1] > 0.5
    assert_equal(tmp_path / "quiet" / BEST, tmp_path / "busy" / BEST)
