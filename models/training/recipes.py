"""Recipes: hyperparameters of a training that belong together."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from models.config import ModelConfig, TrainingConfig


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training, without unset values."""

    learning_rate: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    warmup_epochs: float
    schedule: Literal["cosine", "plateau"]
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    nesterov: bool = False
    decay_all: bool = False
    """weight decay also for biases and normalization, as in the paper"""
    max_epochs: int = 12
    batch_size: int = 64
    patience: int = 0
    """number of epochs without a better validation accuracy after which the training stops early; 0: no early stop"""
    lowest_rate: float = 1.0
    """rate of the first layer, relative to the last layer; the layers between follow a geometric series"""
    ema: float = 0.0
    """decay of the exponential moving average of the weights; 0: no average"""


PROBE, FINETUNE = "probe", "finetune"
RECIPES = {
    # Krizhevsky, Sutskever and Hinton 2012, section 5.
    "paper": Recipe(0.01, 0.9, 5e-4, 0.0, 0.0, "plateau", decay_all=True),
    # Cosine: Loshchilov and Hutter 2017; label smoothing: Szegedy et al. 2016; warm-up: Goyal et al. 2017.
    "modern": Recipe(0.04, 0.9, 5e-4, 0.1, 1.0, "cosine", nesterov=True),
    # LARS and its warm-up over 5 epochs: You, Gitman and Ginsburg 2017.
    "large_batch": Recipe(1.0, 0.9, 5e-4, 0.1, 5.0, "cosine", optimizer="lars"),
    # AdamW: Loshchilov and Hutter 2019; lower rates for earlier layers: Howard and Ruder 2018; averaged weights:
    # Polyak and Juditsky 1992.
    # Logistic regression on features: it has no steps.
    PROBE: Recipe(0.0, 0.0, 0.0, 0.0, 0.0, "cosine", max_epochs=0),
    FINETUNE: Recipe(
        1e-3, 0.9, 0.01, 0.1, 0.5, "cosine",
        optimizer="adamw", max_epochs=5, batch_size=32, patience=3, lowest_rate=0.1, ema=0.98,
    ),
}  # fmt: skip


def stages(training: TrainingConfig, model: ModelConfig) -> tuple[str, ...]:
    """Return the recipes of a training, in order.

    For published weights, `auto` is a probe, whose model is ready within minutes, and then fine-tuning. For random
    weights, or weights in a file, `auto` is `modern`.
    """
    if training.recipe != "auto":
        return (training.recipe,)
    return (PROBE, FINETUNE) if model.weights == "imagenet" else ("modern",)


def resolve_recipe(config: TrainingConfig) -> Recipe:
    """Return the named recipe, in which the values of the config replace its own values."""
    recipe = RECIPES[config.recipe]
    return replace(recipe, **{name: value for name, value in _set(config).items() if value is not None})


def resolve_training(training: TrainingConfig, model: ModelConfig) -> TrainingConfig:
    """Return the config with `auto` and all null fields replaced by the values of the recipe's last stage.

    Fields that a probe does not use become null, so that they do not change the training's key.
    """
    named = training.model_copy(update={"recipe": stages(training, model)[-1]})
    recipe = None if named.recipe == PROBE else resolve_recipe(named)
    return named.model_copy(update={field: getattr(recipe, field, None) for field in _set(named)})


def _set(config: TrainingConfig) -> dict[str, Any]:
    """Return the config's values for the fields of a recipe."""
    return {field.name: getattr(config, field.name) for field in fields(Recipe) if hasattr(config, field.name)}
