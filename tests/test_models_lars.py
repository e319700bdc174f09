import numpy as np
import pytest
import torch
from torch import nn

from models.config import TrainingConfig
from models.training.lars import LARS
from models.training.optimizers import make_optimizer
from models.training.recipes import RECIPES, resolve_recipe


def test_the_papers_algorithm():
    """You, Gitman and Ginsburg 2017, algorithm 1, layer by layer in NumPy."""
    draws = np.random.default_rng(0)
    start = [draws.normal(size=shape) for shape in ((4, 3), (2, 2, 3, 3))]
    layers = [nn.Parameter(torch.tensor(array)) for array in start]
    optimizer = LARS(layers, 0.5, momentum=0.9, weight_decay=0.01, trust=0.02)
    weights, velocities = [array.copy() for array in start], [np.zeros_like(array) for array in start]
    for _ in range(5):
        for index, layer in enumerate(layers):
            gradient = draws.normal(size=layer.shape)
            layer.grad = torch.tensor(gradient)
            length = np.linalg.norm(weights[index])
            local = 0.02 * length / (np.linalg.norm(gradient) + 0.01 * length)
            velocities[index] = 0.9 * velocities[index] + 0.5 * local * (gradient + 0.01 * weights[index])
            weights[index] -= velocities[index]
        optimizer.step()
        for layer, expected in zip(layers, weights, strict=True):
            np.testing.assert_allclose(layer.detach(), expected, rtol=1e-12)


def test_a_step_is_a_share_of_the_weights_however_large_the_gradient():
    for size in (1e-6, 1.0, 1e6):
        layer = nn.Parameter(torch.full((10, 10), 2.0))
        layer.grad = torch.full((10, 10), size)
        LARS([layer], 1.0, weight_decay=0.0, trust=0.01).step()
        assert (2.0 - layer).tolist() == pytest.approx(np.full((10, 10), 0.02), rel=1e-4)


@pytest.mark.parametrize(("weight", "gradient"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_layer_of_zeros_takes_the_plain_step(weight, gradient):
    layer = nn.Parameter(torch.full((2, 2), weight))
    layer.grad = torch.full((2, 2), gradient)
    LARS([layer], 0.1, weight_decay=0.0).step()
    assert torch.equal(layer, torch.full((2, 2), weight - 0.1 * gradient))


def test_biases_and_normalization_are_plain_sgd():
    torch.manual_seed(0)
    recipe = RECIPES["large_batch"]
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = make_optimizer(recipe, network, batch_size=128)
    bias = network[0].bias
    before = bias.detach().clone()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.equal(bias, before - recipe.learning_rate)


def test_the_rate_grows_with_the_root_of_the_batch():
    recipe = resolve_recipe(TrainingConfig(recipe="large_batch", batch_size=8192))
    assert make_optimizer(recipe, nn.Linear(2, 2), 8192).param_groups[0]["lr"] == pytest.approx(
        8 * recipe.learning_rate
    )


def test_a_large_batch_learns():
    """Two classes on either side of a plane, all in one batch."""
    torch.manual_seed(0)
    points = torch.randn(2048, 8)
    labels = (points.sum(dim=1) > 0).long()
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = LARS(network.parameters(), 4.0, trust=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(points), labels)
        loss.backward()
        optimizer.step()
    assert (network(points).argmax(dim=1) == labels).float().mean() > 0.95
