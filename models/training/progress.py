"""Progress of a training: a progress bar in a terminal, one line per epoch elsewhere."""

import logging
import sys
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from models.training.classifier import ImageClassifier

IN_NO_KEY = "What a person sees of a training."

_log = logging.getLogger("convoy")


class Bar(Callback):
    """One progress bar per epoch, with the epoch's metrics and the remaining time of the whole training."""

    def __init__(self) -> None:
        self._bar: _EpochBar | None = None
        self._started, self._first_step = 0.0, 0

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        """Start the clock. The remaining time is estimated from the steps of this attempt."""
        self._started, self._first_step = time.monotonic(), trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, _batch: Any, index: int) -> None:
        """Open a bar. Not at the start of the epoch, which Lightning does not report for a resumed epoch."""
        if self._bar is not None:
            return
        assert isinstance(module, ImageClassifier)
        module.shown = {}
        self._bar = _EpochBar(
            desc=f"epoch {trainer.current_epoch + 1:{len(str(trainer.max_epochs))}}/{trainer.max_epochs}",
            total=int(trainer.num_training_batches),
            initial=index,
        )

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, _out: Any, _batch: Any, index: int) -> None:
        """Advance the bar by one step."""
        assert self._bar is not None
        assert isinstance(module, ImageClassifier)
        self._bar.left = self._seconds_left(trainer)
        if module.shown:
            self._bar.loss = module.shown["train/step_loss"]
        self._bar.update(index + 1 - self._bar.n)

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        """Leave the bar on the screen, with the epoch's metrics."""
        assert self._bar is not None
        self._bar.loss = float(trainer.callback_metrics.get("train/loss", self._bar.loss))
        self._bar.val = float(trainer.callback_metrics["val/loss"]), float(trainer.callback_metrics["val/accuracy"])
        self._bar.left = self._seconds_left(trainer)
        self._close()

    def on_exception(self, _trainer: Trainer, _module: LightningModule, _error: BaseException) -> None:
        """End the line, so that the next message begins a new line."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _seconds_left(self, trainer: Trainer) -> float:
        num_steps = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        done = max(1, trainer.global_step - self._first_step)
        return (time.monotonic() - self._started) / done * max(0, num_steps - trainer.global_step)


class _EpochBar(tqdm):  # type: ignore[type-arg]
    """Progress bar whose text has a constant width. The bar fits 80 columns, and is never wider than 100."""

    def __init__(self, **options: Any) -> None:
        self.loss, self.left = float("nan"), float("nan")
        self.val: tuple[float, float] | None = None
        layout = "{desc} {percentage:3.0f}%|{bar}| {figures}{left:>8} left"
        super().__init__(file=sys.stderr, bar_format=layout, dynamic_ncols=True, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """Values for the layout."""
        loss = "" if self.loss != self.loss else f"loss {self.loss:.3f}"
        val = "" if self.val is None else f"val {self.val[0]:.3f}, {100 * self.val[1]:.1f} %"
        left = "" if self.left != self.left else self.format_interval(self.left)
        found = dict(super().format_dict)
        found["ncols"] = min(found["ncols"] or 80, 100)
        return found | {"figures": f"{loss:11} {val:18}", "left": left}


class EpochLines(Callback):
    """Logs one line per epoch, if no progress bar can be shown."""

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        """Log the epoch's metrics."""
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        _log.info(
            "epoch %d/%s: train loss %.3f, val loss %.3f, val accuracy %.4f",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            metrics.get("train/loss", float("nan")),
            metrics["val/loss"],
            metrics["val/accuracy"],
        )
