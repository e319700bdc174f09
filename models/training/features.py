"""Features of prepared images: inputs of a network's last layer, computed once and stored.

Shapes: N images, S stored pixels per side, D features.
"""

import logging
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from core.checksum import Checksum
from core.errors import UserError
from core.files import file_sha256, whole_file
from core.tool import shows_progress
from data.batches.shards import Indices, PreparedImages, center_crop
from data.images.decode import Pixels
from models.exported.onnx_file import write_onnx
from models.exported.session import open_session
from models.networks.weights import UNREADABLE
from models.training.classifier import ImageClassifier

Features = npt.NDArray[np.float32]

BATCH_SIZE = 16
KEPT_TOGETHER = 1024
"""Number of images whose features are written together. An interruption loses at most this many features."""

_log = logging.getLogger("convoy")


def last_linear(network: nn.Module) -> tuple[str, nn.Linear]:
    """Return name and module of the layer that maps features to logits.

    Raises:
        UserError: the network ends with another kind of layer.

    """
    layers = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    linear = [(name, module) for name, module in layers if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            "training.recipe is probe or finetune, and this model.network has no linear layer at its end: choose "
            "another one, such as efficientnet_lite0"
        )
    return linear[-1]


class Backbone(nn.Module):
    """Classifier without its last layer: uint8 [N, C, C, 3] to features [N, D]."""

    def __init__(self, classifier: ImageClassifier) -> None:
        """Copy all layers before the last layer."""
        super().__init__()
        self.normalize, self.network = classifier.normalize, deepcopy(classifier.network)
        name, _ = last_linear(self.network)
        self.network.set_submodule(name, nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of cropped images."""
        features: Tensor = self.network(self.normalize(images))
        return features


class FeatureExtractor:
    """Computes features of images with onnxruntime, and stores them in a folder.

    Features of known pixels are not computed again, also for another data version.
    """

    def __init__(self, classifier: ImageClassifier, folder: Path) -> None:
        """Store features in `folder`, in a separate folder for each backbone and normalization."""
        self._crop = classifier.augmentation.crop
        with torch.random.fork_rng(devices=[]):
            model = write_onnx(Backbone(classifier), self._crop, folder / "backbone.onnx", "features")
        self._folder = folder / file_sha256(model)[:16]
        self._folder.mkdir(exist_ok=True)
        self._session = open_session(model.replace(self._folder / model.name))
        self._known = self._read()

    def __call__(self, images: PreparedImages, name: str) -> Features:
        """Return the features [N, D] of all images of a split. `name` is for the progress bar."""
        digests = [_digest(picture) for picture in _each(images, self._crop)]
        missing = np.array([index for index, digest in enumerate(digests) if digest not in self._known], dtype=np.int64)
        if len(missing):
            _log.info("features: %s, computing %d of %d images", name, len(missing), len(images))
        hidden = not shows_progress()
        with tqdm(total=len(missing), unit="image", desc=f"features of {name}", disable=hidden) as progress:
            for start in range(0, len(missing), KEPT_TOGETHER):
                chosen = missing[start : start + KEPT_TOGETHER]
                self._keep([digests[index] for index in chosen], self._compute(images, chosen, progress))
        return np.stack([self._known[digest] for digest in digests])

    def _compute(self, images: PreparedImages, chosen: Indices, progress: "tqdm[Never]") -> Features:
        found = []
        for start in range(0, len(chosen), BATCH_SIZE):
            batch = center_crop(images.gather(chosen[start : start + BATCH_SIZE]), self._crop)
            found.append(self._session.run(["features"], {"image": batch})[0])
            progress.update(len(batch))
        return np.concatenate(found)

    def _keep(self, digests: list[bytes], features: Features) -> None:
        """Write features to a file named after their first image."""
        with whole_file(self._folder / f"{digests[0].hex()}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, digests=np.frombuffer(b"".join(digests), dtype=np.uint8), features=features)
        self._known.update(zip(digests, features, strict=True))

    def _read(self) -> dict[bytes, Features]:
        known: dict[bytes, Features] = {}
        for path in sorted(self._folder.glob("*.npz")):
            try:
                with path.open("rb") as file, np.load(file) as content:
                    digests, features = content["digests"].tobytes(), content["features"]
            except UNREADABLE as error:
                _log.warning("features: %s is damaged (%s) and computed again", path, type(error).__name__)
                path.unlink()
                continue
            size = Checksum().digest_size
            known |= {digests[size * row : size * (row + 1)]: features[row] for row in range(len(features))}
        return known


def _each(images: PreparedImages, crop: int) -> Iterator[Pixels]:
    for start in range(0, len(images), KEPT_TOGETHER):
        yield from center_crop(images.gather(np.arange(start, min(start + KEPT_TOGETHER, len(images)))), crop)


def _digest(image: Pixels) -> bytes:
    checksum = Checksum()
    checksum.update(image.tobytes())
    return checksum.digest()
