"""What is kept of a training while it runs, and how it ends before its last epoch without losing a step."""

import logging
import shutil
import zipfile
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from core.files import whole_file
from models.networks.weights import UNREADABLE
from models.training.interruption import Interruption, Stopped
from models.training.job import BEST, LAST

PREVIOUS = "previous.ckpt"
"""What was `LAST` before: a disk that damages one file may have left the other."""

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class ResumePoint:
    """Where an interrupted training goes on."""

    checkpoint: Path
    step: int
    """steps that were done, over all epochs"""


def find_resume_point(checkpoints: Path) -> ResumePoint | None:
    """Find the newest checkpoint that is whole; damaged ones are told of and removed."""
    for checkpoint in (checkpoints / LAST, checkpoints / PREVIOUS, checkpoints / BEST):
        if not checkpoint.is_file():
            continue
        try:
            _check_sums(checkpoint)
            state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            return ResumePoint(checkpoint, int(state["global_step"]))
        except UNREADABLE as error:
            _log.warning("train: %s is damaged (%s) and no longer used", checkpoint, type(error).__name__)
            checkpoint.unlink(missing_ok=True)  # each of several processes finds it
    return None


def _check_sums(checkpoint: Path) -> None:
    """Compare the checksums that `torch.save` writes: torch itself reads altered weights without a word."""
    with zipfile.ZipFile(checkpoint) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(damaged)


class WholeFileIO(TorchCheckpointIO):
    """Checkpoints that are whole or absent, on whatever file system the folder is."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write under another name, then rename."""
        del storage_options
        with whole_file(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class _Due(IntFlag):
    """What is to be done after a step."""

    SAVE = 1
    STOP = 2
    END = 4


class Checkpoints(Checkpoint):
    """Keeps the state of a training: after every epoch, every few minutes, and before it stops.

    `last.ckpt` is the newest state, `previous.ckpt` the one before it, `best.ckpt` that of the epoch with the highest
    validation accuracy. When the time for a training is spent, its epoch ends with the step: it is validated and kept
    as any other, and the training is over.
    """

    def __init__(
        self, folder: Path, interruption: Interruption, *, every_minutes: float, max_hours: float | None
    ) -> None:
        """Keep checkpoints in `folder`; `max_hours` counts all attempts together."""
        self._folder, self._interruption = folder, interruption
        self._every_seconds = 60 * every_minutes
        self._max_seconds = 3600 * max_hours if max_hours else float("inf")
        self._best_accuracy, self._seconds = -1.0, 0.0
        self._started = self._saved = monotonic()

    def state_dict(self) -> dict[str, float]:
        """Go with every checkpoint."""
        return {"best_accuracy": self._best_accuracy, "seconds": monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on from a checkpoint."""
        self._best_accuracy, self._seconds = state_dict["best_accuracy"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks, and answer signals: Lightning has set its own handlers by now."""
        del trainer, pl_module
        self._interruption.take_over()
        self._saved = monotonic()
        self._started = self._saved - self._seconds

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save where it is time to.

        Raises:
            Stopped: somebody has asked for it; the checkpoint is written.

        """
        due = self._due(trainer)
        # After the last step of an epoch come its validation and its own checkpoint.
        if not due or trainer.is_last_batch:
            return
        if due & _Due.END:
            self._end(trainer)
            return
        self._save(trainer, pl_module)
        if due & _Due.STOP:
            raise Stopped(trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and keep the epoch as the best one where it is.

        Raises:
            Stopped: somebody has asked for it.

        """
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        is_best = accuracy > self._best_accuracy
        self._best_accuracy = max(accuracy, self._best_accuracy)
        due = self._due(trainer)
        self._save(trainer, pl_module)
        if is_best and trainer.is_global_zero:
            link(self._folder / LAST, self._folder / BEST)
        if due & _Due.END:
            self._end(trainer)
        if due & _Due.STOP:
            raise Stopped(trainer.global_step)

    @staticmethod
    def _end(trainer: Trainer) -> None:
        """Let Lightning validate what was not yet, and end."""
        if not trainer.should_stop:
            _log.info("train: the time of training.max_hours is spent after %d steps", trainer.global_step)
        trainer.should_stop = True

    def _due(self, trainer: Trainer) -> _Due:
        """Decide, for all processes alike: each may have got a signal, and their clocks differ."""
        now = monotonic()
        due = _Due.STOP if self._interruption.is_requested else _Due(0)
        if trainer.is_global_zero:
            due |= _Due.SAVE if now - self._saved >= self._every_seconds else 0
            due |= _Due.END if now - self._started >= self._max_seconds else 0
        if trainer.world_size == 1:
            return due
        bits = torch.tensor([bit in due for bit in _Due], dtype=torch.int32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(bits, torch.distributed.ReduceOp.MAX)
        return sum((bit for bit, value in zip(_Due, bits.tolist(), strict=True) if value), _Due(0))

    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        """Write `LAST`; of weights that are no numbers, nothing is kept."""
        module.require_finite_weights()  # type: ignore[operator]
        last = self._folder / LAST
        if trainer.is_global_zero and last.is_file():
            link(last, self._folder / PREVIOUS)
        trainer.save_checkpoint(last)
        self._saved = monotonic()


def link(source: Path, target: Path) -> None:
    """Give a checkpoint a second name: it is hundreds of megabytes large, and is replaced, never written to."""
    with whole_file(target) as temporary:
        try:
            temporary.hardlink_to(source)
        except OSError:  # not every file system has links
            shutil.copyfile(source, temporary)
