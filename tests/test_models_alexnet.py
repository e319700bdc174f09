import io
import math
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.errors import UserError
from models.networks.alexnet import PRESETS, AlexNet, feature_side
from models.networks.alexnet_layers import AdaptiveAverage, LocalResponseNorm
from models.networks.cost import measure


def layers(network, kind):
    return [layer for layer in network.modules() if isinstance(layer, kind)]


@pytest.fixture(scope="module")
def of_2012():
    torch.manual_seed(0)
    return AlexNet(PRESETS["2012"], num_classes=1000, input_size=227)


def small(preset="bn", *, num_classes=10, input_size=32, **options):
    """A quarter of the width: the same layers, quick to run."""
    spec = replace(PRESETS[preset], **{"width": 0.25} | options)
    return AlexNet(spec, num_classes=num_classes, input_size=input_size)


# Multiply-adds of 2012: conv1 55*55*96*363, conv2 27*27*256*1200, conv3 13*13*384*2304, conv4 13*13*384*1728,
# conv5 13*13*256*1728, then 9216*4096 + 4096*4096 + 4096*1000.
def test_costs_of_2012(of_2012):
    cost = measure(of_2012, 227)
    convolutions = 55**2 * 96 * 363 + 27**2 * 256 * 1200 + 13**2 * (384 * 2304 + 384 * 1728 + 256 * 1728)
    assert cost == (60_965_224, 724_406_816)
    assert cost.multiply_adds == convolutions + 9216 * 4096 + 4096 * 4096 + 4096 * 1000


def test_costs_of_owt_and_bn():
    assert measure(AlexNet(PRESETS["owt"]), 224) == (61_100_840, 714_188_480)
    # Each normalized channel gains a scale and a shift and loses a bias.
    num_normalized = 64 + 192 + 384 + 256 + 256 + 4096 + 4096
    assert measure(AlexNet(PRESETS["bn"]), 224) == (61_100_840 + num_normalized, 714_188_480)


def test_measuring_leaves_the_network_as_it_was():
    network = small()
    network.features[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure(network, 32)
    assert network.training
    assert not network.features[1].training
    assert network.features[5].training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(layer._forward_hooks for layer in network.modules())


def test_layers_of_2012(of_2012):
    shapes = [tuple(layer.weight.shape) for layer in layers(of_2012, nn.Conv2d)]
    assert shapes == [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]
    stem = of_2012.features[0]
    assert (stem.stride, stem.padding) == ((4, 4), (0, 0))
    order = [type(layer).__name__ for layer in of_2012.features[:4]]
    assert order == ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"]
    assert len(layers(of_2012, LocalResponseNorm)) == 2
    assert {(pool.kernel_size, pool.stride) for pool in layers(of_2012, nn.MaxPool2d)} == {(3, 2)}
    head = [type(layer).__name__ for layer in of_2012.classifier]
    assert head == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]


def test_initialization_of_2012(of_2012):
    weighted = [*layers(of_2012, nn.Conv2d), *layers(of_2012, nn.Linear)]
    assert all(layer.weight.mean().item() == pytest.approx(0, abs=2e-4) for layer in weighted)
    assert all(layer.weight.std().item() == pytest.approx(0.01, rel=0.02) for layer in weighted)
    biases = [layer.bias.unique().tolist() for layer in weighted]
    assert biases == [[0], [1], [0], [1], [1], [1], [1], [0]]


def test_biases_of_2012_belong_to_the_layer_and_not_to_the_towers():
    network = small("2012", groups=1, num_conv_layers=6)
    assert [layer.bias.unique().tolist() for layer in layers(network, nn.Conv2d)] == [[0], [1], [0], [1], [1], [1]]


def test_initialization_of_bn():
    torch.manual_seed(0)
    network = AlexNet(PRESETS["bn"], num_classes=10, input_size=32)
    conv2 = layers(network, nn.Conv2d)[1]
    # He et al. 2015: variance 2 / fan, here 192 outputs of 5x5.
    assert conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (192 * 25)), rel=0.01)
    assert all(layer.bias is None for layer in layers(network, nn.Conv2d))
    logits = network.eval()(torch.randn(8, 3, 32, 32))
    loss = F.cross_entropy(logits, torch.arange(8)).item()
    assert loss == pytest.approx(math.log(10), abs=0.3)


def test_local_response_norm_is_the_papers_formula():
    a = np.random.default_rng(0).normal(scale=30, size=(2, 9, 3, 4))
    b = np.empty_like(a)
    for i in range(9):
        neighbours = a[:, max(0, i - 2) : min(8, i + 2) + 1]
        b[:, i] = a[:, i] / (2 + 1e-4 * (neighbours**2).sum(axis=1)) ** 0.75
    ours = LocalResponseNorm()(torch.tensor(a, dtype=torch.float32))
    np.testing.assert_allclose(ours.numpy(), b, rtol=1e-5)


def test_local_response_norm_keeps_half_precision():
    x = torch.randn(1, 8, 2, 2) * 30
    ours = LocalResponseNorm()(x.bfloat16())
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), LocalResponseNorm()(x), rtol=0.02, atol=0.01)


@pytest.mark.parametrize(("side", "target"), [(7, 6), (8, 6), (11, 6), (13, 6), (12, 6), (7, 3)])
def test_adaptive_average_is_torchs(side, target):
    x = torch.randn(2, 3, side, side)
    torch.testing.assert_close(AdaptiveAverage(side, target)(x), F.adaptive_avg_pool2d(x, target))


@pytest.mark.parametrize(
    ("option", "value", "kind", "count"),
    [
        ("activation", "tanh", nn.Tanh, 7),
        ("activation", "relu", nn.ReLU, 7),
        ("normalization", "none", nn.BatchNorm2d, 0),
        ("normalization", "lrn", LocalResponseNorm, 2),
        ("normalization", "batch", nn.BatchNorm2d, 5),
        ("num_conv_layers", 7, nn.Conv2d, 7),
    ],
)
def test_options_choose_layers(option, value, kind, count):
    assert len(layers(small(**{option: value}), kind)) == count


def test_options_set_values():
    assert {layer.p for layer in layers(small(dropout=0.25), nn.Dropout)} == {0.25}
    assert {layer.kernel_size for layer in layers(small(pooling="plain"), nn.MaxPool2d)} == {2}
    assert [layer.groups for layer in layers(small(groups=2), nn.Conv2d)] == [1, 2, 1, 2, 2]
    # 64, 192, 384, 256, 256 channels and 1,024 hidden units, times 0.3, to the nearest multiple of 8.
    narrow = small(width=0.3)
    assert [layer.out_channels for layer in layers(narrow, nn.Conv2d)] == [16, 56, 112, 80, 80]
    assert [layer.out_features for layer in layers(narrow, nn.Linear)] == [304, 304, 10]


@pytest.mark.parametrize(
    ("num_conv_layers", "channels"),
    [
        (2, [64, 192]),
        (3, [64, 192, 256]),
        (4, [64, 192, 384, 256]),
        (5, [64, 192, 384, 256, 256]),
        (6, [64, 192, 384, 256, 256, 256]),
        (8, [64, 192, 384, 256, 256, 256, 256, 256]),
    ],
)
def test_depth(num_conv_layers, channels):
    network = small("owt", num_conv_layers=num_conv_layers, width=1)
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert [layer.out_channels for layer in layers(network, nn.Conv2d)] == channels
    assert len(layers(network, nn.MaxPool2d)) == min(3, num_conv_layers)


# At 32: 32, halved 15, 7, 3. At 64, every second pixel: 32, 15, 7, 3. At 128, every fourth: 31, 15, 7, 3.
@pytest.mark.parametrize(
    ("input_size", "side", "kernel", "stride"),
    [
        *[(15, 1, 5, 1), (28, 2, 5, 1), (32, 3, 5, 1), (63, 7, 5, 1)],
        *[(64, 3, 7, 2), (127, 7, 7, 2)],
        *[(128, 3, 11, 4), (224, 6, 11, 4), (256, 7, 11, 4)],
    ],
)
def test_input_sizes(input_size, side, kernel, stride):
    network = small(input_size=input_size, num_classes=7).eval()
    assert (network.features[0].kernel_size[0], network.features[0].stride[0]) == (kernel, stride)
    assert feature_side(network.spec, input_size) == side
    images = torch.randn(2, 3, input_size, input_size)
    assert network.features(images).shape[-2:] == (side, side)
    assert network.avgpool(network.features(images)).shape[-1] == min(6, side)
    assert network(images).shape == (2, 7)


def test_too_small_an_input():
    with pytest.raises(UserError, match=r"^model.input_size is 14, too small .* at least 15 pixels, or .* plain$"):
        small(input_size=14)
    with pytest.raises(UserError, match=r"at least 19 pixels$"):
        small("2012", input_size=10)
    assert small(input_size=8, pooling="plain").eval()(torch.randn(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        *[(preset, {}) for preset in PRESETS],
        *[("bn", options) for options in ({"activation": "tanh"}, {"groups": 2}, {"normalization": "lrn"})],
    ],
)
def test_one_step_lowers_the_loss(preset, options):
    torch.manual_seed(0)
    network = small(preset, dropout=0.0, **options)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    before = F.cross_entropy(network(images), labels)
    before.backward()
    optimizer.step()
    assert F.cross_entropy(network(images), labels) < before


def test_dropout_works_in_training_only():
    network = small("owt")
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def outputs_agree(network, input_size, *, dynamo):
    """Export with a batch of two and a dynamic batch, then compare with torch at batches of 1, 2 and 7."""
    network.eval()
    example = torch.randn(2, 3, input_size, input_size)
    names = {"input_names": ["images"], "output_names": ["logits"], "dynamo": dynamo, "verbose": False}
    file = io.BytesIO()
    if dynamo:
        torch.onnx.export(network, (example,), dynamic_shapes=({0: "batch"},), **names).save(file)
    else:
        torch.onnx.export(network, (example,), file, dynamic_axes={"images": {0: "batch"}}, **names)
    session = onnxruntime.InferenceSession(file.getvalue())
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, input_size, input_size)
        (logits,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(logits, network(images).detach().numpy(), atol=1e-5)


exporting = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


# 63 and 256 pixels leave 7x7 cells, which are averaged into 6x6; so do 13x13 with two layers.
@exporting
@pytest.mark.parametrize(
    ("preset", "input_size", "options"),
    [
        *[("bn", 32, {}), ("2012", 32, {}), ("owt", 63, {})],
        *[
            pytest.param(preset, input_size, options, marks=pytest.mark.slow)
            for preset in ("bn", "2012", "owt")
            for input_size, options in ((64, {}), (128, {}), (224, {}), (256, {}), (224, {"num_conv_layers": 2}))
        ],
    ],
)
def test_onnx_by_tracing(preset, input_size, options):
    outputs_agree(small(preset, input_size=input_size, **options), input_size, dynamo=False)


@exporting
@pytest.mark.slow
@pytest.mark.parametrize(("preset", "input_size"), [("bn", 32), ("2012", 64), ("owt", 63), ("bn", 224)])
def test_onnx_by_dynamo(preset, input_size):
    outputs_agree(small(preset, input_size=input_size), input_size, dynamo=True)
