import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError
from data.augmentation.augment import Augmentation, Normalize, center_crop
from data.augmentation.draws import seed_of, seed_torch
from data.batches.loader import Batch, Share
from models.networks.weights import NORMALIZATION
from models.training.optimizers import make_optimizer, make_scheduler
from models.training.recipes import Recipe

_logger = logging.getLogger("convoy")

CHECK_EVERY_N_STEPS = 50
DROPOUT = 16
"""First stream of random numbers for dropout. Each process has its own stream."""


class ImageClassifier(LightningModule):
    """Network with its training. Batches are stored images, uint8 [N, S, S, 3], and labels, int64 [N].

    Metrics go to the loggers directly, with the number of finished steps, because Lightning's checkpoints do not
    contain its averages.
    """

    class_weights: Tensor | None

    def __init__(
        self, network: nn.Module, augmentation: Augmentation, recipe: Recipe, class_weights: Sequence[float] = ()
    ) -> None:
        """Train `network` on augmented images. Validation images are cropped at the centre.

        `class_weights` multiply the loss of each class's training images; empty: all images count the same.
        """
        super().__init__()
        self.register_buffer("class_weights", torch.tensor(class_weights) if class_weights else None, persistent=False)
        self.network, self.augmentation, self.recipe = network, augmentation, recipe
        self.shown: dict[str, float] = {}
        """values for the progress bar besides the metrics of epochs"""
        self._sums = torch.zeros(3)
        """sums over the images of an epoch: losses, correct predictions, number of images"""

    @property
    def normalize(self) -> Normalize:
        """Normalization of images in training, evaluation and serving."""
        return self.augmentation.normalize

    def forward(self, images: Tensor) -> Tensor:
        """Classify stored images, uint8 [N, S, S, 3], into logits [N, num_classes]."""
        return self._logits(self.normalize(center_crop(images, self.augmentation.crop)))

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one augmented batch.

        Raises:
            UserError: the loss is not finite. It is checked every `CHECK_EVERY_N_STEPS` steps, because a check makes
                the GPU wait.

        """
        images, labels = batch
        augmented = self.augmentation(images, labels, self.current_epoch, batch_idx)
        self._draw_from(batch_idx)
        logits = self._logits(augmented.pixels).float()
        loss = self._loss(logits, augmented.targets)
        self._count(loss, logits, labels)
        if batch_idx % CHECK_EVERY_N_STEPS == 0:
            self._require_finite(loss)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.shown = {"train/step_loss": loss.item()}
            self._log(self.shown, self.global_step + 1)
        return loss

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy. With class weights, the weight of an image is that of its target's classes."""
        smoothing = self.recipe.label_smoothing
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        shares = targets if targets.is_floating_point() else F.one_hot(targets, self.augmentation.num_classes).float()
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        return (losses * (shares @ self.class_weights)).mean()

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch to the sums of its epoch, on its device, without synchronization."""
        self._sums[0] += loss.detach() * len(labels)
        self._sums[1] += (logits.detach().argmax(dim=1) == labels).sum()
        self._sums[2] += len(labels)

    def _draw_from(self, batch_idx: int) -> None:
        """Seed dropout from seed, epoch, step and process."""
        seed = seed_of(self.augmentation.seed, self.current_epoch, batch_idx, stream=DROPOUT + self.global_rank)
        seed_torch(seed, self.device)

    def _require_finite(self, value: Tensor) -> None:
        if not torch.isfinite(value):
            rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
            raise UserError(
                f"the loss is {value.item()} at epoch {self.current_epoch + 1}, step {self.global_step}, learning rate "
                f"{rate:.3g}: lower training.learning_rate; the last good checkpoint is kept",
                exit_code=1,
            )

    def require_finite_weights(self) -> None:
        """Check the weights before a checkpoint, because the last step may have made them infinite or NaN.

        Raises:
            UserError: a weight is not finite.

        """
        for parameter in self.parameters():
            self._require_finite(parameter.detach().sum())

    def validation_step(self, batch: Batch, _batch_idx: int) -> None:
        """Loss and accuracy of one validation batch."""
        images, labels = batch
        if len(labels):  # with several processes, the last batch may be empty here
            logits = self(images).float()
            self._count(F.cross_entropy(logits, labels), logits, labels)

    def on_train_start(self) -> None:
        """Move the sums to the device, and augment only this process's share of each batch."""
        self._sums = self._sums.to(self.device)
        self.augmentation.share = Share(self.global_rank, self.trainer.world_size)

    def on_train_epoch_start(self) -> None:
        """Reset the sums, and set the epoch, which decides the order of the images."""
        self._count_anew()
        loader = self.trainer.train_dataloader
        assert loader is not None
        loader.epoch = self.current_epoch

    def on_validation_epoch_start(self) -> None:
        """Report the training metrics of the epoch, whose training steps are finished, and reset the sums."""
        metrics = self._metrics("train")
        self._tell(metrics, self.global_step)
        if self.current_epoch >= self.recipe.warmup_epochs:
            self._warn_of_guessing(metrics["train/loss"])

    def _warn_of_guessing(self, loss: float) -> None:
        """Warn if the training loss is worse than that of guessing."""
        guessing = math.log(self.augmentation.num_classes)
        if loss > guessing and self.trainer.is_global_zero:
            _logger.warning(
                "train: the loss of epoch %d is %.3f, above that of guessing (%.3f): try training.learning_rate=%.2g",
                *(self.current_epoch + 1, loss, guessing, self.recipe.learning_rate / 4),
            )

    def on_validation_epoch_end(self) -> None:
        """Report the validation metrics of the epoch.

        Raises:
            UserError: the loss is not finite.

        """
        metrics = self._metrics("val")
        self._require_finite(torch.tensor(metrics["val/loss"]))
        self._tell(metrics | {"epoch": float(self.current_epoch)}, self.global_step)

    def _metrics(self, split: str) -> dict[str, float]:
        """Return mean loss and accuracy over the images of all processes since the last call."""
        loss, hits, count = self.trainer.strategy.reduce(self._sums.clone(), reduce_op="sum").tolist()
        self._count_anew()
        return {f"{split}/loss": loss / max(count, 1), f"{split}/accuracy": hits / max(count, 1)}

    def _count_anew(self) -> None:
        self._sums = torch.zeros(3, device=self.device)

    def _tell(self, metrics: Mapping[str, float], step: int) -> None:
        """Report metrics to loggers, progress bar, callbacks and schedule."""
        self._log(metrics, step)
        self.log_dict(dict(metrics), prog_bar=True, logger=False, batch_size=1)

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        """Report metrics to the loggers only. Lightning takes several times as long for the other receivers."""
        if self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.log_metrics(dict(metrics), step)

    def portable_state(self) -> dict[str, Any]:
        """Return weights and pixel normalization, which reproduce the network in another process."""
        return {"state_dict": self.state_dict(), NORMALIZATION: self.normalize.spec.model_dump()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the normalization, and the sums of an unfinished epoch."""
        checkpoint[NORMALIZATION] = self.normalize.spec.model_dump()
        checkpoint["sums"] = self._sums.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums."""
        self._sums = torch.tensor(checkpoint["sums"])

    def configure_optimizers(self) -> Any:
        """Make optimizer and schedule of the recipe."""
        loader = self.trainer.train_dataloader or self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        optimizer = make_optimizer(self.recipe, self.network, loader.batch_size)
        epochs = self.trainer.max_epochs or 1
        return {
            "optimizer": optimizer,
            "lr_scheduler": make_scheduler(self.recipe, optimizer, len(loader), epochs),
        }
