from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import cos, pi, sqrt
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from models.config import TrainingConfig
from models.lars import LARS

BASE_BATCH_SIZE = 128
"""The batch size of the AlexNet paper, for which learning rates are given."""


@dataclass(frozen=True)
class Recipe:
    """The values of a training, all of them known."""

    learning_rate: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    warmup_epochs: float
    schedule: Literal["cosine", "plateau"]
    nesterov: bool
    decay_all: bool
    """weight decay on biases and normalization too, as in the paper"""
    lars: bool = False
    """steps scaled for each layer, for batches of thousands"""


RECIPES = {
    # Krizhevsky, Sutskever and Hinton 2012, section 5.
    "paper": Recipe(0.01, 0.9, 5e-4, 0.0, 0.0, "plateau", nesterov=False, decay_all=True),
    # Cosine: Loshchilov and Hutter 2017; label smoothing: Szegedy et al. 2016; warm-up: Goyal et al. 2017.
    "modern": Recipe(0.04, 0.9, 5e-4, 0.1, 1.0, "cosine", nesterov=True, decay_all=False),
    # LARS and its warm-up over 5 epochs: You, Gitman and Ginsburg 2017.
    "large_batch": Recipe(1.0, 0.9, 5e-4, 0.1, 5.0, "cosine", nesterov=False, decay_all=False, lars=True),
}


def resolve_recipe(config: TrainingConfig) -> Recipe:
    """Take the named recipe, with what the config sets in place of its own values."""
    recipe = RECIPES[config.recipe]
    overrides = {field.name: getattr(config, field.name, None) for field in fields(recipe)}
    return replace(recipe, **{name: value for name, value in overrides.items() if value is not None})


def make_optimizer(recipe: Recipe, network: nn.Module, batch_size: int) -> Optimizer:
    """SGD with momentum, or LARS.

    The rate grows in proportion to the batch (Goyal et al. 2017); with LARS, with its root, as the variance of the mean
    gradient shrinks (Krizhevsky 2014).
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if recipe.decay_all or parameter.ndim > 1]
    plain = [parameter for parameter in parameters if not recipe.decay_all and parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    if recipe.lars:
        groups[1]["adapt"] = False
        rate = recipe.learning_rate * sqrt(batch_size / BASE_BATCH_SIZE)
        return LARS(_filled(groups), rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return SGD(
        _filled(groups),
        lr=recipe.learning_rate * batch_size / BASE_BATCH_SIZE,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        # There is none without momentum, and torch says so with a traceback.
        nesterov=recipe.nesterov and recipe.momentum > 0,
        fused=_can_fuse(parameters),
    )


def _filled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [group for group in groups if group["params"]]


def make_scheduler(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int, max_epochs: int) -> dict[str, Any]:
    """Make Lightning's description of the schedule: by step for cosine, by epoch and validation loss for plateau."""
    if recipe.schedule == "plateau":
        # The paper divides by 10 when the validation error stops improving; how long to wait is left open there.
        plateau = ReduceLROnPlateau(optimizer, factor=0.1, patience=3)
        # At the last step of an epoch: at the end of the epoch it would come after the checkpoint, and would be missing
        # from a training that goes on from there.
        return {"scheduler": plateau, "interval": "step", "frequency": steps_per_epoch, "monitor": "val/loss"}
    cosine = _cosine(optimizer, round(recipe.warmup_epochs * steps_per_epoch), max_epochs * steps_per_epoch)
    return {"scheduler": cosine, "interval": "step"}


def _cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LRScheduler:
    """Linear from 0 to the peak over the warm-up, half a cosine from there to 0."""
    warmup_steps = min(warmup_steps, total_steps // 2)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return (1 + cos(pi * (step - warmup_steps) / max(total_steps - warmup_steps, 1))) / 2

    return LambdaLR(optimizer, factor)


def _can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    """One pass over the memory in place of several, where every parameter is a plain float tensor."""
    return all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in parameters)
