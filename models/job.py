import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from data.config import AugmentationConfig
from data.errors import UserError
from data.manifest import DataManifest, read_manifest
from models.config import ModelConfig, TrainingConfig

LAST, BEST = "last.ckpt", "best.ckpt"
"""Checkpoints of the last finished epoch, and of the epoch with the highest validation accuracy."""

CODE = (
    "data/augment.py",
    "data/load.py",
    "data/shards.py",
    "models/alexnet.py",
    "models/classifier.py",
    "models/datamodule.py",
    "models/lenet.py",
    "models/recipes.py",
    "models/train.py",
    "models/zoo.py",
)
"""What trained weights depend on: a change here trains anew."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that the weights of a network follow from."""

    prepared: Path
    data_version: str
    model: ModelConfig
    augmentation: AugmentationConfig
    training: TrainingConfig

    @property
    def manifest(self) -> DataManifest:
        """What the prepared folder holds."""
        return read_manifest(self.prepared)

    @property
    def input_size(self) -> int:
        """Pixels on each side of what the network sees.

        Raises:
            UserError: more than are stored.

        """
        stored = self.manifest.size
        if self.model.input_size and self.model.input_size > stored:
            raise UserError(
                f"model.input_size={self.model.input_size}, and the images are prepared at {stored} px: "
                "prepare them with a larger data.size, or lower model.input_size"
            )
        return self.model.input_size or stored

    @property
    def params(self) -> dict[str, str]:
        """Every parameter by its path in params.yaml, as text."""
        sections = {"model": self.model, "augmentation": self.augmentation, "training": self.training}
        return {
            f"{section}.{name}": str(value)
            for section, config in sections.items()
            for name, value in config.model_dump(mode="json").items()
        }

    @property
    def key(self) -> str:
        """Names the job: equal exactly where data, parameters and code are equal."""
        params = {name: value for name, value in self.params.items() if name != "training.log_every_n_steps"}
        return hashlib.sha256(json.dumps([self.data_version, params, code_digest()]).encode()).hexdigest()[:16]

    def changes_since(self, data_version: str, params: dict[str, str], code: str) -> list[str]:
        """Say in words what differs from an earlier job."""
        words = [f"data {data_version[:8]} -> {self.data_version[:8]}"] if data_version != self.data_version else []
        words += [
            f"{name} {params[name]} -> {value}"
            for name, value in self.params.items()
            if params.get(name, value) != value
        ]
        return words + (["the code has changed"] if code != code_digest() else [])


def code_digest() -> str:
    """Digest of the code that trained weights depend on."""
    root = Path(__file__).parent.parent
    return hashlib.sha256(b"\0".join((root / name).read_bytes() for name in CODE)).hexdigest()[:16]
