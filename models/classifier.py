from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from data.augment import Augmentation, Normalize, center_crop
from data.errors import UserError
from data.load import Batch
from models.recipes import Recipe, make_optimizer, make_scheduler

CHECK_EVERY_N_STEPS = 50


class ImageClassifier(LightningModule):
    """A network and how it learns. Batches are stored images, uint8 [N, S, S, 3], and labels, int64 [N]."""

    def __init__(self, network: nn.Module, normalize: Normalize, augmentation: Augmentation, recipe: Recipe) -> None:
        """`augmentation` is for training images only; validation images are cropped at the centre."""
        super().__init__()
        self.network, self.normalize, self.augmentation, self.recipe = network, normalize, augmentation, recipe

    def forward(self, images: Tensor) -> Tensor:
        """Classify stored images, uint8 [N, S, S, 3], into logits [N, num_classes]."""
        return self._logits(self.normalize(center_crop(images, self.augmentation.crop)))

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one augmented batch.

        Raises:
            UserError: the loss is no finite number; looked at every `CHECK_EVERY_N_STEPS` and before every checkpoint,
                because looking makes a GPU wait.

        """
        images, labels = batch
        cropped, color_shift = self.augmentation(images, self.current_epoch, batch_idx)
        logits = self._logits(self.normalize(cropped, color_shift))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        self._log("train", loss, logits, labels)
        self.log("train/step_loss", loss.detach(), on_step=True, on_epoch=False)
        if self.trainer.is_last_batch or batch_idx % CHECK_EVERY_N_STEPS == 0:
            self._check_finite(loss)
        return loss

    def _check_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
            raise UserError(
                f"the loss is {loss.item()} at epoch {self.current_epoch + 1}, step {self.global_step}, learning rate "
                f"{rate:.3g}: lower training.learning_rate; the last good checkpoint is kept",
                exit_code=1,
            )

    def validation_step(self, batch: Batch, _batch_idx: int) -> None:
        """Loss and accuracy on images that are not trained on."""
        images, labels = batch
        logits = self(images)
        self._log("val", F.cross_entropy(logits.float(), labels), logits, labels)

    def _log(self, split: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        metrics = {f"{split}/loss": loss.detach(), f"{split}/accuracy": accuracy}
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(labels), prog_bar=True)

    def on_train_epoch_start(self) -> None:
        """Let the order of the images and what dropout draws follow from seed and epoch, in a resumed training too."""
        loader = self.trainer.train_dataloader
        assert loader is not None
        loader.epoch = self.current_epoch
        draws = np.random.SeedSequence([self.augmentation.seed, self.current_epoch])
        torch.manual_seed(int(draws.generate_state(1)[0]))

    def on_validation_end(self) -> None:
        """Let no checkpoint be made of weights that the last step has spoilt.

        Raises:
            UserError: the loss is no finite number.

        """
        self._check_finite(self.trainer.callback_metrics["val/loss"])

    def configure_optimizers(self) -> Any:
        """Take optimizer and schedule from the recipe."""
        loader = self.trainer.train_dataloader or self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        optimizer = make_optimizer(self.recipe, self.network, loader.batch_size)
        epochs = self.trainer.max_epochs or 1
        return {
            "optimizer": optimizer,
            "lr_scheduler": make_scheduler(self.recipe, optimizer, len(loader), epochs),
        }
