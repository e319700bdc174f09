"""Real processes that train together over gloo."""

import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import load, steps_per_epoch
from conftest import tiny_job

from core.errors import UserError
from models.tracking.journal import Journal
from models.tracking.logger import RunLogger
from models.training.distributed import Assignment, train_on_devices
from models.training.job import BEST, LAST
from models.training.train import train

pytestmark = pytest.mark.slow


def assignment(job, folder, name):
    return Assignment(job, folder / name, folder / f"{name}.jsonl")


def points(path):
    return {(point.name, point.step): point.value for line in Journal(path).read(0) for point in line.points}


def assert_close(first, second):
    ours, theirs = load(first)["state_dict"], load(second)["state_dict"]
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture
def job(prepared):
    return tiny_job(prepared, log_every_n_steps=2)


def of_two(job, **training):
    return replace(job, training=job.training.model_copy(update={"devices": 2} | training))


def test_two_processes_reach_the_weights_of_one(job, tmp_path):
    """The same images, draws and global batch; only the order of sums differs."""
    alone = assignment(job, tmp_path, "alone")
    train(job, alone.checkpoints, [RunLogger("alone", Journal(alone.journal))])
    both = assignment(of_two(job), tmp_path, "both")
    train_on_devices(both)
    for name in (BEST, LAST):
        assert load(both.checkpoints / name)["global_step"] == load(alone.checkpoints / name)["global_step"]
        assert_close(alone.checkpoints / name, both.checkpoints / name)
    ours, theirs = points(both.journal), points(alone.journal)
    assert ours.keys() == theirs.keys()
    for key in ours:
        # The loss of a single step is that of the first process's share.
        if key[0] != "train/step_loss":
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-3)


def test_they_stop_together_and_go_on_together(job, tmp_path):
    job = of_two(job, max_epochs=400)
    both = assignment(job, tmp_path, "both")
    timer = threading.Thread(target=_interrupt_when, args=(both.journal,))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        train_on_devices(both)
    timer.join()
    step = load(both.checkpoints / LAST)["global_step"]
    assert 0 < step < 400 * steps_per_epoch(job)
    epochs = step // steps_per_epoch(job) + 2
    shorter = replace(job, training=job.training.model_copy(update={"max_epochs": epochs}))
    train_on_devices(replace(both, job=shorter))
    assert load(both.checkpoints / LAST)["global_step"] == epochs * steps_per_epoch(job)


def _interrupt_when(journal):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.is_file() and journal.stat().st_size > 1000):
        time.sleep(0.05)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def test_what_one_process_says_is_told(job, tmp_path):
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at epoch"):
        train_on_devices(assignment(of_two(job, learning_rate=1e30), tmp_path, "both"))


def test_torchrun_starts_the_same_processes(job, tmp_path):
    """As on several machines, each of which starts its own."""
    alone, both = assignment(job, tmp_path, "alone"), assignment(of_two(job, max_epochs=1), tmp_path, "both")
    both.write(tmp_path / "job.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, "-m", "models.training.distributed", tmp_path / "job.json"], check=True, timeout=300)
    train(tiny_job(job.prepared, max_epochs=1), alone.checkpoints)
    assert_close(alone.checkpoints / LAST, both.checkpoints / LAST)


def test_an_assignment_is_read_as_it_was_written(job, tmp_path):
    written = assignment(of_two(job), tmp_path, "both")
    written.write(tmp_path / "job.json")
    assert Assignment.read(tmp_path / "job.json") == written
