import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from core.code import digest
from core.errors import UserError
from data.config import AugmentationConfig
from data.manifest import DataManifest, read_data_manifest
from models.config import NETWORKS, TORCHVISION, ModelConfig, TrainingConfig
from models.training.class_balance import Balance, class_weights, resolve_balance
from models.training.recipes import FINETUNE, PROBE, Recipe, resolve_recipe, resolve_training

IN_NO_KEY = "Names trainings by what their weights follow from."

LAST, BEST = "last.ckpt", "best.ckpt"
"""Newest checkpoint, and checkpoint of the epoch with the highest validation accuracy."""
START = "start.ckpt"
"""Initial weights of fine-tuning that starts from a probe."""

NOT_IN_WEIGHTS = ("training.checkpoint_minutes", "training.log_every_n_steps", "training.resident")


@dataclass(frozen=True)
class TrainingJob:
    """Everything that determines the weights of a network."""

    prepared: Path
    data_version: str
    model: ModelConfig
    augmentation: AugmentationConfig
    training: TrainingConfig

    def __post_init__(self) -> None:
        """Fill unset values with the values of the recipe."""
        object.__setattr__(self, "training", resolve_training(self.training, self.model))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "TrainingJob":
        """Read the result of `as_json`."""
        return cls(
            Path(content["prepared"]),
            content["data_version"],
            ModelConfig.model_validate(content["model"]),
            AugmentationConfig.model_validate(content["augmentation"]),
            TrainingConfig.model_validate(content["training"]),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the job as JSON values."""
        return {"prepared": str(self.prepared), "data_version": self.data_version} | self._sections

    @property
    def _sections(self) -> dict[str, dict[str, Any]]:
        sections = {"model": self.model, "augmentation": self.augmentation, "training": self.training}
        return {name: section.model_dump(mode="json") for name, section in sections.items()}

    @property
    def probe(self) -> "TrainingJob":
        """Probe of the same network on the same data, from which fine-tuning starts."""
        return replace(self, training=self.training.model_copy(update={"recipe": PROBE}))

    @property
    def recipe(self) -> Recipe:
        """All values of the training."""
        return resolve_recipe(self.training)

    @cached_property
    def manifest(self) -> DataManifest:
        """Manifest of the prepared folder."""
        return read_data_manifest(self.prepared)

    @property
    def input_size(self) -> int:
        """Pixels per side of the network's input.

        Raises:
            UserError: the input is larger than the stored images.

        """
        stored = self.manifest.size
        if self.model.input_size and self.model.input_size > stored:
            raise UserError(
                f"model.input_size={self.model.input_size}, and the images are prepared at {stored} px: "
                "prepare them with a larger data.size, or lower model.input_size"
            )
        return self.model.input_size or stored

    @property
    def class_balance(self) -> Balance:
        """How the job balances classes of different size."""
        return resolve_balance(self.training, self._counts)

    def weights_of(self, balance: Balance) -> list[float]:
        """Weight of each class if the job balances by `balance`, else an empty list."""
        return class_weights(self._counts, balance) if self.class_balance == balance else []

    @property
    def _counts(self) -> list[int]:
        """Number of training images of each class."""
        manifest = self.manifest
        return [manifest.splits["train"][name] for name in manifest.classes]

    @property
    def params(self) -> dict[str, str]:
        """Every parameter by its path in params.yaml, as text."""
        return {
            f"{section}.{name}": str(value)
            for section, values in self._sections.items()
            for name, value in values.items()
        }

    @cached_property
    def code(self) -> str:
        """Digest of the code that determines the weights: training and this network, but not data preparation."""
        entries, packages = _entries(self.model.network, self.training.recipe), NETWORKS.packages(self.model.network)
        return digest(*entries, without=["data.preparing.stage"], packages=packages)

    @property
    def key(self) -> str:
        """Identifier of the job, equal only for equal data, parameters and code."""
        params = {name: value for name, value in self.params.items() if name not in NOT_IN_WEIGHTS}
        return hashlib.sha256(json.dumps([self.data_version, params, self.code]).encode()).hexdigest()[:16]

    def changes_since(self, data_version: str, params: dict[str, str], code: str) -> list[str]:
        """Describe the differences from an earlier job."""
        words = [f"data {data_version[:8]} -> {self.data_version[:8]}"] if data_version != self.data_version else []
        words += [
            f"{name} {params[name]} -> {value}"
            for name, value in self.params.items()
            if params.get(name, value) != value
        ]
        now = _entries(self.model.network, self.training.recipe)
        before = _entries(params.get("model.network", ""), params.get("training.recipe", ""))
        return words + (["the code has changed"] if before == now and code != self.code else [])


def _entries(network: str, recipe: str) -> list[str]:
    """Return the modules that compute the weights. Their imports count as well."""
    return [
        "models.training.train",
        *(NETWORKS.modules(network) or [TORCHVISION]),
        *(["models.training.probe"] if recipe in (PROBE, FINETUNE) else []),
    ]
