"""Our loop over the batches against Lightning's."""

import pytest
from checkpoints import Curves, assert_equal, interrupt, load, stop_at
from conftest import tiny_job
from pytorch_lightning import Callback

from models.training import train as train_module
from models.training.job import BEST, LAST
from models.training.loop import BatchLoop
from models.training.train import train

OPTIONS = {
    "modern": {"log_every_n_steps": 3},
    "paper": {"recipe": "paper", "log_every_n_steps": 1000},
    "bf16": {"precision": "bf16", "channels_last": True, "checkpoint_minutes": 1e-9, "log_every_n_steps": 2},
}


class Heard(Callback):
    """What a callback is told around each batch."""

    def __init__(self):
        self.calls = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.calls.append(("start", trainer.global_step, batch_idx, len(batch[1])))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.calls.append(("end", trainer.global_step, batch_idx, float(outputs["loss"])))


@pytest.fixture
def plain_steps(monkeypatch):
    """The steps that are not Lightning's."""
    steps, original = [], BatchLoop._train_plainly

    def train_plainly(loop, data_fetcher):
        steps.append(loop.global_step)
        original(loop, data_fetcher)

    monkeypatch.setattr(BatchLoop, "_train_plainly", train_plainly)
    return steps


@pytest.mark.parametrize("case", OPTIONS)
def test_it_does_what_lightnings_does(prepared, tmp_path, monkeypatch, plain_steps, case):
    job = tiny_job(prepared, **OPTIONS[case])
    ours, theirs, heard, expected = Curves(), Curves(), Heard(), Heard()
    train(job, tmp_path / "ours", [ours], [heard])
    assert 0 < len(plain_steps) < len(heard.calls) / 2
    num_plain = len(plain_steps)
    monkeypatch.setattr(train_module, "use_batch_loop", lambda trainer: None)
    train(job, tmp_path / "theirs", [theirs], [expected])
    assert len(plain_steps) == num_plain
    assert heard.calls == expected.calls
    assert ours.points == theirs.points
    for name in (BEST, LAST):
        assert_equal(tmp_path / "ours" / name, tmp_path / "theirs" / name)
        assert load(tmp_path / "ours" / name)["loops"] == load(tmp_path / "theirs" / name)["loops"]


def test_either_goes_on_where_the_other_was_stopped(prepared, tmp_path, monkeypatch):
    job = tiny_job(prepared, checkpoint_minutes=1e-9)
    train(job, tmp_path / "whole")
    for step, use in ((3, train_module.use_batch_loop), (6, lambda trainer: None)):
        with monkeypatch.context() as patch:
            patch.setattr(train_module, "use_batch_loop", use)
            stop_at(patch, step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(job, tmp_path / "stopped")
        assert load(tmp_path / "stopped" / LAST)["global_step"] == step
    train(job, tmp_path / "stopped")
    assert_equal(tmp_path / "whole" / LAST, tmp_path / "stopped" / LAST)
