import numpy as np
import pytest
import torch
from checkpoints import Curves, assert_equal, load, steps_per_epoch
from conftest import tiny_job
from pytorch_lightning import Callback, Trainer
from torch import nn

from core.errors import UserError
from data.batches.shards import PreparedImages
from models.training.checkpoints import PREVIOUS
from models.training.classifier import ImageClassifier
from models.training.job import BEST, LAST
from models.training.train import build_classifier, load_classifier, train


def loss_of(classifier, prepared):
    images = PreparedImages(prepared, tiny_job(prepared).manifest, "val")
    pixels, labels = torch.from_numpy(images.gather(np.arange(len(images)))), torch.from_numpy(images.labels)
    with torch.no_grad():
        return nn.functional.cross_entropy(classifier.eval()(pixels), labels)


def test_training_lowers_the_loss_and_is_repeatable(prepared, tmp_path):
    job = tiny_job(prepared)
    first = train(job, tmp_path / "first")
    train(job, tmp_path / "second")
    assert (first.checkpoint, first.resumed_from) == (tmp_path / "first" / BEST, None)
    assert_equal(tmp_path / "first" / LAST, tmp_path / "second" / LAST)
    torch.manual_seed(0)
    assert loss_of(load_classifier(job, first.checkpoint), prepared) < 0.9 * loss_of(build_classifier(job), prepared)
    assert {path.name for path in (tmp_path / "first").iterdir()} == {BEST, LAST, PREVIOUS}


def test_another_seed_trains_other_weights(prepared, tmp_path):
    for seed in (0, 1):
        train(tiny_job(prepared, max_epochs=1, seed=seed), tmp_path / str(seed))
    with pytest.raises(AssertionError):
        assert_equal(tmp_path / "0" / LAST, tmp_path / "1" / LAST)


def test_a_curve_has_one_point_an_epoch_and_the_best_epoch_is_kept(prepared, tmp_path):
    curves = Curves()
    train(tiny_job(prepared), tmp_path, [curves])
    accuracies = curves.of("val/accuracy")
    assert len(accuracies) == len(curves.of("train/loss")) == len(curves.of("train/accuracy")) == 3
    assert load(tmp_path / BEST)["epoch"] == accuracies.index(max(accuracies))
    assert load(tmp_path / LAST)["epoch"] == 2


def test_a_training_that_is_over_is_not_trained_further(prepared, tmp_path):
    job = tiny_job(prepared, max_epochs=1)
    train(job, tmp_path)
    before = (tmp_path / LAST).read_bytes()
    assert train(job, tmp_path).resumed_from == steps_per_epoch(job)
    assert (tmp_path / LAST).read_bytes() == before


def test_a_checkpoint_is_whole_or_absent(prepared, tmp_path, monkeypatch):
    job = tiny_job(prepared, max_epochs=2)
    train(tiny_job(prepared, max_epochs=1), tmp_path)
    before = load(tmp_path / LAST)["epoch"]
    save = torch.save

    def run_out_of_space(checkpoint, path):
        save(checkpoint, path)
        path.write_bytes(path.read_bytes()[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", run_out_of_space)
    with pytest.raises(OSError, match="No space"):
        train(job, tmp_path)
    assert load(tmp_path / LAST)["epoch"] == before
    assert {path.name for path in tmp_path.iterdir()} == {BEST, LAST, PREVIOUS}


def test_a_damaged_or_missing_checkpoint_cannot_be_loaded(prepared, tmp_path):
    (tmp_path / BEST).write_bytes(b"PK\3\4 and no more")
    for name in (BEST, "missing.ckpt"):
        with pytest.raises(UserError, match=f"{name} is missing or damaged"):
            load_classifier(tiny_job(prepared), tmp_path / name)


@pytest.mark.parametrize("batch_size", [16, 4096])
def test_a_loss_that_is_no_number_is_told_and_no_checkpoint_is_made_of_it(prepared, tmp_path, batch_size):
    """With one step an epoch, the first loss is still a number, and the weights after it are not."""
    job = tiny_job(prepared, learning_rate=1e30, batch_size=batch_size)
    with pytest.raises(
        UserError, match=r"epoch 1, step \d+, learning rate .*e\+.*: lower training.learning_rate"
    ) as error:
        train(job, tmp_path)
    assert error.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_the_last_good_checkpoint_is_kept_when_the_loss_is_no_number(prepared, tmp_path, monkeypatch):
    train(tiny_job(prepared, max_epochs=1), tmp_path)
    before = (tmp_path / LAST).read_bytes()
    monkeypatch.setattr(Trainer, "fit", _spoil(Trainer.fit))
    with pytest.raises(UserError, match="the loss is nan at epoch 2"):
        train(tiny_job(prepared, max_epochs=2), tmp_path)
    assert (tmp_path / LAST).read_bytes() == before


def _spoil(fit):
    class SpoilWeights(Callback):
        def on_train_epoch_start(self, trainer, module):
            next(module.network.parameters()).data.fill_(float("nan"))

    def fit_and_spoil(trainer, *arguments, **options):
        trainer.callbacks.append(SpoilWeights())
        return fit(trainer, *arguments, **options)

    return fit_and_spoil


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": 1000}, "training.devices is 1000, and this machine has"),
        ({"devices": 2, "batch_size": 15}, "batch_size=15 cannot be shared equally by 2"),
        ({"accelerator": "gpu"}, "training.accelerator is gpu"),
    ],
)
def test_devices_that_are_not_there_are_named(prepared, tmp_path, monkeypatch, options, words):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UserError, match=words):
        train(tiny_job(prepared, **options), tmp_path)


def test_altered_images_are_not_trained_on(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared, tmp_path / "prepared")
    shard = next((tmp_path / "prepared").glob("train-*[0-9a-f].npy"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"{shard.name} is missing or was altered"):
        train(tiny_job(tmp_path / "prepared"), tmp_path / "checkpoints")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_told_with_the_remedy(prepared, tmp_path, monkeypatch, error):
    def run_out(*_):
        raise error

    monkeypatch.setattr(ImageClassifier, "training_step", run_out)
    with pytest.raises(UserError, match=r"training.batch_size=16 at 20 px: set training.batch_size=8,"):
        train(tiny_job(prepared), tmp_path)


@pytest.mark.parametrize(("rate", "num_warnings"), [(0.01, 0), (8.0, 1)])
def test_a_loss_above_that_of_guessing_is_told_after_the_warm_up(prepared, tmp_path, caplog, rate, num_warnings):
    """The second epoch is the first one after the warm-up, and the loss of guessing one of three is log 3 = 1.099."""
    train(tiny_job(prepared, max_epochs=2, learning_rate=rate), tmp_path)
    lines = [record.message for record in caplog.records if "above that of guessing (1.099)" in record.message]
    assert len(lines) == num_warnings
    assert all(line.endswith("try training.learning_rate=2") for line in lines)
