from pathlib import Path

from pytorch_lightning import LightningDataModule

from data.load import Batches
from data.manifest import DataManifest
from data.shards import PreparedImages, verify

EVAL_BATCH_SIZE = 256


class ImageDataModule(LightningDataModule):
    """The prepared splits as batches; augmentation and normalization happen on the device, in the classifier."""

    def __init__(self, prepared: Path, manifest: DataManifest, *, batch_size: int, seed: int) -> None:
        """`seed` decides the order of the training images."""
        super().__init__()
        self._prepared, self._manifest, self._batch_size, self._seed = prepared, manifest, batch_size, seed

    def prepare_data(self) -> None:
        """Compare the shards with their checksums before anything is trained on them."""
        verify(self._prepared, self._manifest)

    def train_dataloader(self) -> Batches:
        """Batches in an order of their own every epoch."""
        images = PreparedImages(self._prepared, self._manifest, "train")
        return Batches(images, self._batch_size, shuffle_seed=self._seed)

    def val_dataloader(self) -> Batches:
        """Batches in the order of the shards."""
        return Batches(PreparedImages(self._prepared, self._manifest, "val"), EVAL_BATCH_SIZE, shuffle_seed=None)

    def test_dataloader(self) -> Batches:
        """Batches in the order of the shards."""
        return Batches(PreparedImages(self._prepared, self._manifest, "test"), EVAL_BATCH_SIZE, shuffle_seed=None)
