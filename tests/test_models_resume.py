"""A training that was stopped, at any step and in any way, ends as one that was not."""

import logging
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from checkpoints import Curves, assert_equal, interrupt, load, steps_per_epoch, stop_at
from conftest import tiny_job

from models.training.checkpoints import PREVIOUS, Checkpoints, find_resume_point
from models.training.classifier import ImageClassifier
from models.training.interruption import Interruption
from models.training.job import BEST, LAST
from models.training.train import train

EVERY_STEP = 1e-9
EVERY_EPOCH = 60.0


def ask(number):
    return lambda: os.kill(os.getpid(), number)


# AlexNet draws for dropout; the paper's rate follows from what validation has brought so far.
CASES = {
    "LeNet": ("lenet5", {}),
    "LeNet, paper": ("lenet5", {"recipe": "paper"}),
    "LeNet, sampling": ("lenet5", {"class_balance": "sampling"}),
    "AlexNet": ("alexnet", {}),
    "AlexNet, bf16": ("alexnet", {"precision": "bf16", "channels_last": True}),
    "AlexNet, LARS": ("alexnet", {"recipe": "large_batch"}),
}


@pytest.mark.parametrize(
    ("case", "every"), [*((case, EVERY_STEP) for case in CASES), ("AlexNet", EVERY_EPOCH), ("LeNet", EVERY_EPOCH)]
)
def test_a_stopped_training_ends_as_one_that_was_not(prepared, tmp_path, monkeypatch, case, every):
    network, options = CASES[case]
    job = tiny_job(prepared, network, checkpoint_minutes=every, log_every_n_steps=2, **options)
    whole, stopped = Curves(), Curves()
    train(job, tmp_path / "whole", [whole])
    num_steps, seed = steps_per_epoch(job) * 3, len(case)
    kept = 0
    for step in sorted(np.random.default_rng(seed).choice(np.arange(1, num_steps), 3, replace=False).tolist()):
        with monkeypatch.context() as patch:
            stop_at(patch, step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(job, tmp_path / "stopped", [stopped])
        point = find_resume_point(tmp_path / "stopped")
        kept = step if every == EVERY_STEP else step // steps_per_epoch(job) * steps_per_epoch(job)
        # The checkpoint of the epoch before is written after its validation, that of a step before the next one.
        assert (point.step if point else 0) == kept
    assert train(job, tmp_path / "stopped", [stopped]).resumed_from == (kept or None)
    for name in (BEST, LAST):
        assert_equal(tmp_path / "whole" / name, tmp_path / "stopped" / name)
    assert dict(stopped.points) == dict(whole.points)
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == {BEST, LAST, PREVIOUS}


def test_so_does_one_of_a_network_of_the_users(prepared, tmp_path, monkeypatch):
    net = "from torch import nn\n\ndef build(k, size): return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, k))\n"
    (tmp_path / "my_net.py").write_text(net)
    monkeypatch.chdir(tmp_path)
    job = tiny_job(prepared, "my_net:build", checkpoint_minutes=EVERY_STEP)
    train(job, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 5, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(job, tmp_path / "stopped")
    assert train(job, tmp_path / "stopped").resumed_from == 5
    assert_equal(tmp_path / "whole" / BEST, tmp_path / "stopped" / BEST)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_after_the_step_is_kept(prepared, tmp_path, monkeypatch, caplog, number):
    job, before = tiny_job(prepared), signal.getsignal(number)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "convoy"):
        stop_at(patch, 7, ask(number))
        with pytest.raises(KeyboardInterrupt):
            train(job, tmp_path / "stopped")
    assert "train: stopped after step 8, which is kept" in caplog.text
    assert signal.getsignal(number) is before
    assert find_resume_point(tmp_path / "stopped").step == 8
    assert train(job, tmp_path / "stopped").resumed_from == 8
    train(job, tmp_path / "whole")
    assert_equal(tmp_path / "whole" / LAST, tmp_path / "stopped" / LAST)


def test_a_second_signal_stops_at_once(prepared, tmp_path, monkeypatch):
    def twice():
        ask(signal.SIGINT)()
        ask(signal.SIGINT)()

    stop_at(monkeypatch, 2, twice)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_job(prepared), tmp_path)
    assert find_resume_point(tmp_path) is None


def test_a_signal_in_the_last_step_of_an_epoch_waits_for_its_validation(prepared, tmp_path, monkeypatch):
    job = tiny_job(prepared)
    with monkeypatch.context() as patch:
        stop_at(patch, steps_per_epoch(job) - 1, ask(signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            train(job, tmp_path / "stopped")
    assert find_resume_point(tmp_path / "stopped").step == steps_per_epoch(job)
    assert (tmp_path / "stopped" / BEST).is_file()
    train(job, tmp_path / "stopped")
    train(job, tmp_path / "whole")
    assert_equal(tmp_path / "whole" / LAST, tmp_path / "stopped" / LAST)


def test_a_training_outside_the_main_thread_leaves_signals_alone(prepared, tmp_path):
    thread = threading.Thread(target=train, args=(tiny_job(prepared, max_epochs=1), tmp_path))
    thread.start()
    thread.join()
    assert (tmp_path / BEST).is_file()


def test_the_plateau_counts_the_epoch_before_the_interruption(prepared, tmp_path, monkeypatch):
    job = tiny_job(prepared, recipe="paper", max_epochs=2)
    stop_at(monkeypatch, steps_per_epoch(job) + 1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(job, tmp_path)
    (state,) = load(tmp_path / LAST)["lr_schedulers"]
    assert state["last_epoch"] == 1
    assert 0 < state["best"] < float("inf")


def damage(path):
    """Alter one bit in the middle, where the weights are: the file still has its length and its table."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # the same bytes may be there under another name
    path.write_bytes(content)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(prepared, tmp_path, caplog):
    job = tiny_job(prepared)
    train(job, tmp_path)
    best, steps = load(tmp_path / BEST)["global_step"], steps_per_epoch(job)
    damage(tmp_path / LAST)
    assert find_resume_point(tmp_path).step == 2 * steps
    (line,) = [record.message for record in caplog.records]
    assert line.startswith(f"train: {tmp_path / LAST} is damaged")
    damage(tmp_path / PREVIOUS)
    assert find_resume_point(tmp_path).step == best
    assert train(job, tmp_path).resumed_from == best
    for path in tmp_path.iterdir():
        path.write_bytes(b"no checkpoint")
    assert find_resume_point(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_time_that_a_training_may_take_ends_it_with_its_best_epoch(prepared, tmp_path, caplog):
    job = tiny_job(prepared, max_epochs=10_000, max_hours=1 / 3600)
    curves = Curves()
    with caplog.at_level(logging.INFO, "convoy"):
        start = time.monotonic()
        trained = train(job, tmp_path, [curves])
    assert time.monotonic() - start < 10
    accuracies = {step: value for (name, step), value in curves.points if name == "val/accuracy"}
    best = max(accuracies, key=accuracies.get)
    assert load(trained.checkpoint)["global_step"] == best
    assert "training.max_hours is spent after" in caplog.text
    assert load(tmp_path / LAST)["callbacks"]["Checkpoints"]["seconds"] >= 1


def test_an_attempt_counts_the_time_of_those_before_it(tmp_path):
    keeper = Checkpoints(tmp_path, Interruption(), every_minutes=1, max_hours=1)
    keeper.load_state_dict({"best_accuracy": 0.5, "seconds": 3000.0})
    keeper.on_train_start(None, None)
    assert keeper.state_dict()["seconds"] == pytest.approx(3000, abs=1)


def _train_until_killed(job, folder, step):
    """Run in a process of its own."""

    def kill(classifier, batch, batch_idx):
        if classifier.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(classifier, batch, batch_idx)

    original, ImageClassifier.training_step = ImageClassifier.training_step, kill
    torch.set_num_threads(2)
    train(job, folder)


@pytest.fixture
def _two_threads():
    """Threads add up in another order than one, also where the tests share the cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.slow
@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_killed_training_ends_as_one_that_was_not(prepared, tmp_path, seed):
    """SIGKILL, before steps drawn at random; checkpoints some 30 ms apart, wherever that falls."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["models.training.train"])
    job = tiny_job(prepared, "alexnet", checkpoint_minutes=0.0005, seed=seed)
    train(job, tmp_path / "whole")
    steps = np.random.default_rng(seed).choice(np.arange(2, 3 * steps_per_epoch(job)), 4, replace=False)
    for step in sorted(steps.tolist()):
        process = context.Process(target=_train_until_killed, args=(job, tmp_path / "killed", step))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    train(job, tmp_path / "killed")
    for name in (BEST, LAST):
        assert_equal(tmp_path / "whole" / name, tmp_path / "killed" / name)
