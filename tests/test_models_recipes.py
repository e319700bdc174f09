import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from models.config import TrainingConfig
from models.training.optimizers import make_optimizer, make_scheduler
from models.training.recipes import RECIPES, Recipe, resolve_recipe


def rates(recipe: Recipe, batch_size: int, steps_per_epoch: int, epochs: int) -> list[float]:
    """The learning rate of every step of a training."""
    optimizer = make_optimizer(recipe, nn.Linear(2, 2), batch_size)
    scheduler = make_scheduler(recipe, optimizer, steps_per_epoch, epochs)["scheduler"]
    found = []
    for _ in range(steps_per_epoch * epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_papers_values():
    """Krizhevsky et al. 2012, section 5: batch of 128, momentum 0.9, weight decay 0.0005, initial rate 0.01."""
    recipe = resolve_recipe(TrainingConfig(recipe="paper", batch_size=128))
    (group,) = make_optimizer(recipe, nn.Linear(2, 2), batch_size=128).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.01, 0.9, 0.0005, False)
    assert recipe.label_smoothing == 0


def test_the_papers_rule():
    """Section 5: v <- 0.9 v - 0.0005 e w - e g; w <- w + v, with e = 0.01 at a batch of 128."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = make_optimizer(RECIPES["paper"], layer, batch_size=128)
    w, v = 2.0, 0.0
    for g in (1.0, -0.5, 0.25):
        layer.weight.grad = torch.full_like(layer.weight, g)
        optimizer.step()
        v = 0.9 * v - 0.0005 * 0.01 * w - 0.01 * g
        w += v
        assert layer.weight.item() == pytest.approx(w, rel=1e-6)


def test_the_papers_rate_is_divided_by_10_when_validation_stalls():
    optimizer = make_optimizer(RECIPES["paper"], nn.Linear(2, 2), batch_size=128)
    description = make_scheduler(RECIPES["paper"], optimizer, steps_per_epoch=10, max_epochs=90)
    plateau = description["scheduler"]
    assert isinstance(plateau, ReduceLROnPlateau)
    assert (description["monitor"], description["interval"], description["frequency"]) == ("val/loss", "step", 10)
    found = []
    for loss in [1.0, 0.5, *[0.5] * 8]:
        plateau.step(loss)
        found.append(optimizer.param_groups[0]["lr"])
    # patience 3: the fourth epoch without progress cuts, and again four later
    assert found == pytest.approx([0.01] * 5 + [0.001] * 4 + [0.0001])


def test_warm_up_and_cosine():
    """10 steps an epoch for 5 epochs, the first of which warms up; the rate is given for 128 images a step."""
    found = rates(resolve_recipe(TrainingConfig(recipe="modern", learning_rate=0.1)), 256, steps_per_epoch=10, epochs=5)
    assert found[:10] == pytest.approx([0.2 * (step + 1) / 10 for step in range(10)])
    assert max(found) == found[9] == found[10] == pytest.approx(0.2)
    # steps of the cosine's 40
    assert found[10 + 10] == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)) / 2)
    assert found[10 + 20] == pytest.approx(0.2 / 2)
    assert found[10 + 39] == pytest.approx(0.2 * (1 + math.cos(math.pi * 39 / 40)) / 2)


def test_a_warm_up_longer_than_the_training_takes_half_of_it():
    found = rates(
        resolve_recipe(TrainingConfig(recipe="modern", learning_rate=0.1, warmup_epochs=5)),
        128,
        steps_per_epoch=4,
        epochs=1,
    )
    assert found == pytest.approx([0.05, 0.1, 0.1, 0.05])


@pytest.mark.parametrize(("batch_size", "rate"), [(32, 0.025), (128, 0.1), (512, 0.4)])
def test_the_rate_grows_with_the_batch(batch_size, rate):
    """Goyal et al. 2017: k times the images, k times the rate."""
    recipe = resolve_recipe(TrainingConfig(recipe="modern", learning_rate=0.1))
    assert make_optimizer(recipe, nn.Linear(2, 2), batch_size).param_groups[0]["lr"] == pytest.approx(rate)


def test_modern_decay_spares_biases_and_normalization_and_the_paper_spares_nothing():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decayed, plain = make_optimizer(RECIPES["modern"], network, 128).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (5e-4, 0)
    assert [tuple(weights.shape) for weights in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    # bias of the convolution, scale and offset of the normalization, bias of the last layer
    assert [len(weights) for weights in plain["params"]] == [4, 4, 4, 2]
    (everything,) = make_optimizer(RECIPES["paper"], network, 128).param_groups
    assert (everything["weight_decay"], len(everything["params"])) == (5e-4, 6)


def test_frozen_weights_are_left_alone():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    groups = make_optimizer(RECIPES["modern"], network, 128).param_groups
    assert [[tuple(weights.shape) for weights in group["params"]] for group in groups] == [[(2, 2)], [(2,)]]


def test_what_is_set_replaces_what_the_recipe_says_and_zero_is_set():
    recipe = resolve_recipe(TrainingConfig(recipe="modern", momentum=0, label_smoothing=0, weight_decay=0.01))
    assert (recipe.momentum, recipe.label_smoothing, recipe.weight_decay) == (0, 0, 0.01)
    assert recipe.learning_rate == RECIPES["modern"].learning_rate
    # torch knows no Nesterov step without momentum
    assert not make_optimizer(recipe, nn.Linear(2, 2), 128).param_groups[0]["nesterov"]
