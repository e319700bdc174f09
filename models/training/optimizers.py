"""Optimizers and schedules of the recipes."""

from collections.abc import Iterable
from math import cos, pi, sqrt
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from models.training.lars import LARS
from models.training.recipes import Recipe

BASE_BATCH_SIZE = 128
"""Batch size of the AlexNet paper. Learning rates in recipes are for this batch size."""
NUM_DEPTHS = 8
"""Number of groups of layers with their own rates, if earlier layers learn more slowly."""


def make_optimizer(recipe: Recipe, network: nn.Module, batch_size: int) -> Optimizer:
    """Make the recipe's optimizer: SGD with momentum, LARS, or AdamW.

    SGD's rate grows in proportion to the batch (Goyal et al. 2017). The other rates grow with the square root of the
    batch, like the variance of the mean gradient shrinks (Krizhevsky 2014).
    """
    share = batch_size / BASE_BATCH_SIZE
    rate = recipe.learning_rate * (share if recipe.optimizer == "sgd" else sqrt(share))
    groups = list(_groups(recipe, network, rate))
    is_fused = _can_fuse(network.parameters())
    match recipe.optimizer:
        case "lars":
            return LARS(groups, rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        case "adamw":
            betas = (recipe.momentum, 0.999)
            return AdamW(groups, lr=rate, betas=betas, weight_decay=recipe.weight_decay, fused=is_fused)
    return SGD(
        groups,
        lr=rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        # torch refuses Nesterov momentum without momentum.
        nesterov=recipe.nesterov and recipe.momentum > 0,
        fused=is_fused,
    )


def _groups(recipe: Recipe, network: nn.Module, rate: float) -> Iterable[dict[str, Any]]:
    """Group the parameters by depth, and by whether they have weight decay."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    num_depths = 1 if recipe.lowest_rate == 1 else min(NUM_DEPTHS, len(parameters))
    for depth in range(num_depths):
        here = parameters[depth * len(parameters) // num_depths : (depth + 1) * len(parameters) // num_depths]
        lr = rate * recipe.lowest_rate ** (1 - depth / max(num_depths - 1, 1)) if num_depths > 1 else rate
        decayed = [parameter for parameter in here if recipe.decay_all or parameter.ndim > 1]
        plain = [parameter for parameter in here if not recipe.decay_all and parameter.ndim <= 1]
        if decayed:
            yield {"params": decayed, "lr": lr}
        if plain:
            adapt = {"adapt": False} if recipe.optimizer == "lars" else {}
            yield {"params": plain, "lr": lr, "weight_decay": 0.0, **adapt}


def make_scheduler(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int, max_epochs: int) -> dict[str, Any]:
    """Describe the schedule for Lightning: by step for cosine, by epoch and validation loss for plateau."""
    if recipe.schedule == "plateau":
        # The paper divides by 10 when the validation error stops improving, but does not specify the patience.
        plateau = ReduceLROnPlateau(optimizer, factor=0.1, patience=3)
        # At the last step of an epoch, not at its end, which comes after the checkpoint: a resumed training would lose
        # the change.
        return {"scheduler": plateau, "interval": "step", "frequency": steps_per_epoch, "monitor": "val/loss"}
    cosine = _cosine(optimizer, round(recipe.warmup_epochs * steps_per_epoch), max_epochs * steps_per_epoch)
    return {"scheduler": cosine, "interval": "step"}


def _cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LRScheduler:
    """Linear warm-up from 0 to the peak, then half a cosine to 0."""
    warmup_steps = min(warmup_steps, total_steps // 2)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return (1 + cos(pi * (step - warmup_steps) / max(total_steps - warmup_steps, 1))) / 2

    return LambdaLR(optimizer, factor)


def _can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether torch's fused optimizer, with a single pass over the memory, supports all parameters."""
    return all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in parameters)
