"""Checkpoints of a training, and its early end without losing a step."""

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
"""The previous `LAST`, in case the disk damages the newer file."""

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class ResumePoint:
    """State from which an interrupted training resumes."""

    checkpoint: Path
    step: int
    """number of finished steps, over all epochs"""


def find_resume_point(checkpoints: Path) -> ResumePoint | None:
    """Return the newest intact checkpoint, or None. Damaged checkpoints are logged and removed."""
    for checkpoint in (checkpoints / LAST, checkpoints / PREVIOUS, checkpoints / BEST):
        if not checkpoint.is_file():
            continue
        try:
            _check_sums(checkpoint)
            state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            return ResumePoint(checkpoint, int(state["global_step"]))
        except UNREADABLE as error:
            _log.warning("train: %s is damaged (%s) and no longer used", checkpoint, type(error).__name__)
            checkpoint.unlink(missing_ok=True)  # several processes may find the same file
    return None


def _check_sums(checkpoint: Path) -> None:
    """Check the checksums that `torch.save` writes, because `torch.load` ignores them."""
    with zipfile.ZipFile(checkpoint) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(damaged)


class WholeFileIO(TorchCheckpointIO):
    """Writes checkpoints that are complete or absent, on any file system."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write to a temporary file, then rename it."""
        del storage_options
        with whole_file(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class _Due(IntFlag):
    """Actions after a step."""

    SAVE = 1
    STOP = 2
    END = 4


class Checkpoints(Checkpoint):
    """Keeps the state of a training: after every epoch, every few minutes, and before it stops.

    `last.ckpt` is the newest state, `previous.ckpt` the state before, `best.ckpt` the state after the epoch with the
    highest validation accuracy. When the time limit is reached, the epoch ends after the current step. It is validated
    and saved like any other epoch, and the training ends.
    """

    def __init__(
        self, folder: Path, interruption: Interruption, *, every_minutes: float, max_hours: float | None
    ) -> None:
        """Save checkpoints in `folder`. `max_hours` is the limit for all attempts together."""
        self._folder, self._interruption = folder, interruption
        self._every_seconds = 60 * every_minutes
        self._max_seconds = 3600 * max_hours if max_hours else float("inf")
        self._best_accuracy, self._seconds = -1.0, 0.0
        self._started = self._saved = monotonic()

    def state_dict(self) -> dict[str, float]:
        """Return the state of this callback, for every checkpoint."""
        return {"best_accuracy": self._best_accuracy, "seconds": monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restore the state from a checkpoint."""
        self._best_accuracy, self._seconds = state_dict["best_accuracy"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks, and replace the signal handlers that Lightning has set by now."""
        del trainer, pl_module
        self._interruption.take_over()
        self._saved = monotonic()
        self._started = self._saved - self._seconds

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save if a checkpoint is due.

        Raises:
            Stopped: a signal has requested the stop. The checkpoint is written.

        """
        due = self._due(trainer)
        # The last step of an epoch is followed by validation and the epoch's checkpoint.
        if not due or trainer.is_last_batch:
            return
        if due & _Due.END:
            self._end(trainer)
            return
        self._save(trainer, pl_module)
        if due & _Due.STOP:
            raise Stopped(trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, also as the best epoch if the epoch is the best one.

        Raises:
            Stopped: a signal has requested the stop.

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
        """Let Lightning finish the validation, and end the training."""
        if not trainer.should_stop:
            _log.info("train: the time of training.max_hours is spent after %d steps", trainer.global_step)
        trainer.should_stop = True

    def _due(self, trainer: Trainer) -> _Due:
        """Decide for all processes together, because only some may have got a signal, and their clocks differ."""
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
        """Write `LAST`, unless a weight is not finite."""
        module.require_finite_weights()  # type: ignore[operator]
        last = self._folder / LAST
        if trainer.is_global_zero and last.is_file():
            link(last, self._folder / PREVIOUS)
        trainer.save_checkpoint(last)
        self._saved = monotonic()


def link(source: Path, target: Path) -> None:
    """Hard-link a checkpoint, which may have hundreds of megabytes. Files are only replaced, so a link is safe."""
    with whole_file(target) as temporary:
        try:
            temporary.hardlink_to(source)
        except OSError:  # some file systems have no hard links
            shutil.copyfile(source, temporary)
