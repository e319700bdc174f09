import io
import math

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.errors import UserError
from models.networks.cost import measure
from models.networks.lenet import PRESETS, LeNet5, LeNetSpec


@pytest.mark.parametrize("preset", PRESETS)
def test_costs(preset):
    # C1 156, C3 2,416, C5 48,120, F6 10,164, output 850; 28*28*6*25 + 10*10*16*150 + 48,000 + 10,080 + 840.
    assert measure(LeNet5(PRESETS[preset]), 32) == (61_706, 416_520)


def test_published_shapes():
    network = LeNet5(PRESETS["1998"]).eval()
    shapes, x = [], network.luminance(torch.randn(1, 3, 32, 32))
    for layer in network.features:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.AvgPool2d):
            shapes.append(tuple(x.shape[1:]))
    # Figure 2 of the paper.
    assert shapes == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1)]


def test_squashing_function():
    squash = LeNet5(PRESETS["1998"]).features[1]
    a = torch.tensor([-1.0, 0.0, 1.0, 20.0])
    # "f(1) = 1 and f(-1) = -1", appendix A of the paper.
    torch.testing.assert_close(squash(a), torch.tensor([-1.0, 0.0, 1.0, 1.7159]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        (LeNetSpec("relu", "plain"), ["Conv2d", "ReLU", "MaxPool2d"]),
        (LeNetSpec("tanh", "plain"), ["Conv2d", "ScaledTanh", "MaxPool2d"]),
        (LeNetSpec("relu", "average"), ["Conv2d", "ReLU", "AvgPool2d"]),
    ],
)
def test_options(spec, kinds):
    assert [type(layer).__name__ for layer in LeNet5(spec).features[:3]] == kinds


def test_initialization_keeps_the_variance():
    torch.manual_seed(0)
    # The third convolution reads 16*5*5 = 400 values: 1/400 for the scaled tanh, 2/400 for ReLU.
    assert LeNet5(PRESETS["1998"]).features[6].weight.std().item() == pytest.approx(math.sqrt(1 / 400), rel=0.02)
    assert LeNet5(PRESETS["relu"]).features[6].weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.02)


def test_colour_is_seen_as_luminance():
    network = LeNet5().eval()
    pure = torch.eye(3).reshape(3, 3, 1, 1).expand(3, 3, 32, 32)
    grey = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1, 1).expand(3, 3, 32, 32)  # ITU-R BT.601
    torch.testing.assert_close(network(pure), network(grey))


@pytest.mark.parametrize("input_size", [16, 20, 21, 27, 28, 64, 65])
def test_input_sizes(input_size):
    network = LeNet5(num_classes=3, input_size=input_size).eval()
    assert network(torch.randn(2, 3, input_size, input_size)).shape == (2, 3)


def test_too_small_an_input():
    with pytest.raises(UserError, match=r"^model.input_size is 15, too small for lenet5: .* at least 16 pixels$"):
        LeNet5(input_size=15)


@pytest.mark.parametrize("preset", PRESETS)
def test_one_step_lowers_the_loss(preset):
    torch.manual_seed(0)
    network = LeNet5(PRESETS[preset])
    images, labels = torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    before = F.cross_entropy(network(images), labels)
    before.backward()
    torch.optim.SGD(network.parameters(), lr=0.01).step()
    assert F.cross_entropy(network(images), labels) < before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("preset", PRESETS)
def test_onnx(preset):
    network = LeNet5(PRESETS[preset], input_size=28).eval()
    file = io.BytesIO()
    axes = {"images": {0: "batch"}}
    torch.onnx.export(
        network, (torch.randn(2, 3, 28, 28),), file, input_names=["images"], dynamic_axes=axes, dynamo=False
    )
    session = onnxruntime.InferenceSession(file.getvalue())
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 28, 28)
        (logits,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(logits, network(images).detach().numpy(), atol=1e-5)
