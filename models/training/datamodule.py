from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule

from data.batches.loader import Batches, Share
from data.batches.shards import PreparedImages, verify
from data.manifest import DataManifest
from data.splits import Split

EVAL_BATCH_SIZE = 256
RESIDENT_SHARE = 0.25
"""Maximum share of a GPU's free memory for the training images."""


class ImageDataModule(LightningDataModule):
    """Batches of the prepared splits. The classifier augments and normalizes them on the device."""

    def __init__(
        self,
        prepared: Path,
        manifest: DataManifest,
        *,
        batch_size: int,
        seed: int,
        resident: bool | str = "auto",
        class_weights: Sequence[float] = (),
    ) -> None:
        """`seed` decides the order of the training images, `resident` whether they stay in the device's memory.

        `class_weights` multiply the probability of drawing an image of each class; empty: every image once.
        """
        super().__init__()
        self._prepared, self._manifest, self._batch_size, self._seed = prepared, manifest, batch_size, seed
        self._resident, self._class_weights = resident, class_weights
        self._train: Batches | None = None

    def prepare_data(self) -> None:
        """Verify the checksums of the shards before training."""
        verify(self._prepared, self._manifest)

    def train_dataloader(self) -> Batches:
        """Batches in a new order every epoch. Created once, because all images may move to the device."""
        if self._train is None:
            self._train = self._make_train()
        return self._train

    def _make_train(self) -> Batches:
        images = PreparedImages(self._prepared, self._manifest, "train")
        device, share = self._place()
        return Batches(
            images,
            self._batch_size,
            shuffle_seed=self._seed,
            share=share,
            device=device,
            resident=self._is_resident(images, device),
            class_weights=self._class_weights,
        )

    def val_dataloader(self) -> Batches:
        """Batches in the order of the shards."""
        return self._in_order("val")

    def test_dataloader(self) -> Batches:
        """Batches in the order of the shards."""
        return self._in_order("test")

    def _in_order(self, split: Split) -> Batches:
        images = PreparedImages(self._prepared, self._manifest, split)
        device, share = self._place()
        return Batches(images, EVAL_BATCH_SIZE, shuffle_seed=None, share=share, device=device)

    def _place(self) -> tuple[torch.device, Share]:
        if self.trainer is None:
            return torch.device("cpu"), Share()
        return self.trainer.strategy.root_device, Share(self.trainer.global_rank, self.trainer.world_size)

    def _is_resident(self, images: PreparedImages, device: torch.device) -> bool:
        """Whether all images stay in the device's memory. On a CPU, the memory-mapped files are in memory already."""
        if self._resident != "auto":
            return bool(self._resident)
        return device.type == "cuda" and images.num_bytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
