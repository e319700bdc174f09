"""Trainings stopped, and what they leave compared."""

import torch
from pytorch_lightning.loggers.logger import Logger

from data.batches.shards import PreparedImages
from models.training.classifier import ImageClassifier


class Curves(Logger):
    """Keeps what it is given, as ((metric, step), value)."""

    name, version = "curves", 0

    def __init__(self):
        super().__init__()
        self.points = []

    def log_metrics(self, metrics, step=None):
        self.points += [((name, step), value) for name, value in metrics.items()]

    def log_hyperparams(self, params):
        """Lightning asks."""

    def of(self, metric):
        """The values of a metric, as they came."""
        return [value for (name, _), value in self.points if name == metric]


def interrupt():
    raise KeyboardInterrupt


def stop_at(patch, step, action=interrupt):
    """Do `action` in every training from now on in the step after `step` whole ones."""
    original = ImageClassifier.training_step

    def stop(classifier, batch, batch_idx):
        if classifier.global_step == step:
            action()
        return original(classifier, batch, batch_idx)

    patch.setattr(ImageClassifier, "training_step", stop)


def load(path):
    return torch.load(path, weights_only=True)


def assert_equal(first, second):
    """Compare two checkpoints bit by bit: weights, the optimizer's momentum and the schedule."""
    first, second = load(first), load(second)
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert [
        key for key, value in first["state_dict"].items() if not torch.equal(value, second["state_dict"][key])
    ] == []
    assert first["lr_schedulers"] == second["lr_schedulers"]
    (ours,), (theirs,) = first["optimizer_states"], second["optimizer_states"]
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in ours["state"].items():
        assert torch.equal(state["momentum_buffer"], theirs["state"][index]["momentum_buffer"])


def steps_per_epoch(job):
    return len(PreparedImages(job.prepared, job.manifest, "train")) // job.training.batch_size
