"""All that needs torchvision, whose import takes 8 s, is tested here."""

import logging
import math
import pickle

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from core.errors import UserError
from models.config import ModelConfig
from models.networks.alexnet import PRESETS, AlexNet
from models.networks.cost import measure
from models.networks.lenet import LeNet5
from models.networks.registry import build_network, start_from_weights
from models.networks.weights import load_weights, read_weights


def started(config, num_classes, input_size=32):
    """A network whose layers start from the weights that the config names."""
    network = build_network(config, num_classes, input_size)
    start_from_weights(network, config)
    return network


def torchvision_alexnet():
    import torchvision

    return torchvision.models.alexnet(weights=None).eval()


@pytest.mark.parametrize("input_size", [224, 256])
def test_owt_is_torchvisions(input_size, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision_alexnet()
    torch.save(theirs.state_dict(), tmp_path / "alexnet.pth")
    config = ModelConfig(preset="owt", weights=tmp_path / "alexnet.pth")
    ours = started(config, 1000, input_size).eval()
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    images = torch.randn(2, 3, input_size, input_size)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-6)


# torchvision's own counts, with 1,000 classes: "num_params" of their weights.
@pytest.mark.parametrize(
    ("name", "num_parameters", "num_features"),
    [
        ("mobilenet_v3_small", 2_542_856, 1024),
        ("mobilenet_v3_large", 5_483_032, 1280),
        ("efficientnet_b0", 5_288_548, 1280),
    ],
)
def test_torchvisions_networks(name, num_parameters, num_features):
    torch.manual_seed(0)
    network = build_network(ModelConfig(network=name), 10, 64)
    assert measure(network, 64).num_parameters == num_parameters - (1000 - 10) * (num_features + 1)
    images, labels = torch.randn(10, 3, 64, 64), torch.arange(10)
    switch_off_randomness(network)
    before = F.cross_entropy(network(images), labels)
    before.backward()
    torch.optim.SGD(network.parameters(), lr=0.001).step()
    assert F.cross_entropy(network(images), labels) < before


def switch_off_randomness(network):
    for layer in network.modules():
        if isinstance(layer, nn.Dropout) or type(layer).__name__ == "StochasticDepth":
            layer.p = 0.0


def test_default_network_is_alexnet_bn():
    network = build_network(ModelConfig(), 10, 32)
    assert isinstance(network, AlexNet)
    assert network.spec == PRESETS["bn"]


def test_null_fields_keep_the_preset_and_set_ones_change_it():
    as_published = build_network(ModelConfig(preset="2012", width=0.25), 10, 32)
    changed = build_network(ModelConfig(preset="2012", width=0.25, groups=1, normalization="none", dropout=0.0), 10, 32)
    assert (as_published.spec.groups, as_published.spec.normalization, as_published.spec.dropout) == (2, "lrn", 0.5)
    assert (changed.spec.groups, changed.spec.normalization, changed.spec.dropout) == (1, "none", 0.0)
    assert changed.spec.channels == as_published.spec.channels


def test_lenet_options():
    network = build_network(ModelConfig(network="lenet5", preset="1998", pooling="plain"), 10, 28)
    assert isinstance(network, LeNet5)
    assert (network.spec.activation, network.spec.pooling) == ("tanh", "plain")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "1998"}, r"^model.preset is 1998, which alexnet .* make it one of bn, owt, 2012$"),
        (
            {"network": "efficientnet_b0", "preset": "bn"},
            r"^model.preset is bn, which efficientnet_b0 .* make it null$",
        ),
        (
            {"network": "lenet5", "groups": 2},
            r"^model.groups is 2, which is no option of lenet5, which has activation, pooling: leave it null$",
        ),
        ({"network": "lenet5", "width": 0.5}, r"^model.width is 0.5, .* leave it 1.0$"),
        ({"network": "lenet5", "pooling": "overlapping"}, r"^model.pooling is overlapping, .* plain or average$"),
        ({"pooling": "average"}, r"^model.pooling is average, .* make it overlapping or plain$"),
        (
            {"network": "mobilenet_v3_small", "dropout": 0.1},
            r"^model.dropout is 0.1, which is no option of mobilenet_v3_s",
        ),
    ],
)
def test_options_that_a_network_does_not_have(fields, message):
    with pytest.raises(UserError, match=message):
        build_network(ModelConfig(**fields), 10, 32)


def lenet(num_classes, weights=None):
    return started(ModelConfig(network="lenet5", weights=weights), num_classes)


def test_weights_for_another_number_of_classes(tmp_path, caplog):
    trained, path = lenet(10), tmp_path / "ten.pth"
    torch.save({"epoch": 3, "state_dict": trained.state_dict()}, path)
    with caplog.at_level(logging.INFO, logger="convoy"):
        network = lenet(7, path)
    assert torch.equal(network.features[0].weight, trained.features[0].weight)
    assert torch.equal(network.classifier[0].bias, trained.classifier[0].bias)
    assert network.classifier[2].weight.shape == (7, 84)
    (line,) = [record.message for record in caplog.records]
    assert line == f"train: 4 of 5 layers start from {path}; anew: classifier.2"


def test_weights_from_a_lightning_checkpoint(tmp_path):
    trained = lenet(10)
    state = {f"network.{name}": tensor for name, tensor in trained.state_dict().items()} | {
        "normalize.mean": torch.ones(3)
    }
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    network = lenet(10, tmp_path / "last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), trained.parameters(), strict=True))


def test_a_layer_is_taken_whole_or_not_at_all(tmp_path):
    state = lenet(10).state_dict()
    del state["features.3.weight"]
    torch.save(state, tmp_path / "cut.pth")
    network = lenet(10)
    bias = network.features[3].bias.clone()
    line = load_weights(network, read_weights(tmp_path / "cut.pth"))
    assert line == f"4 of 5 layers start from {tmp_path / 'cut.pth'}; anew: features.3"
    assert torch.equal(network.features[3].bias, bias)


class Surprise:
    def __reduce__(self):
        return math.sqrt, (4.0,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "which is no file"),
        (b"", "cannot read"),
        (b"no weights at all", "cannot read"),
        (b"PK\x03\x04 cut short", "cannot read"),
        (pickle.dumps(Surprise(), protocol=2), "cannot read"),
    ],
)
def test_weights_that_are_no_weights(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^model.weights is .*weights.pth, .*{message}.*$") as caught:
        lenet(10, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, [1, 2], torch.ones(2), {"state_dict": 3}, {"other.weight": torch.ones(2)}])
def test_weights_of_which_nothing_fits(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights.pth, 0 of 5 layers fit this network: use weights of the same"):
        lenet(10, tmp_path / "weights.pth")


def test_weights_of_which_fewer_than_half_of_the_layers_fit(tmp_path):
    state = lenet(10).state_dict()
    torch.save({key: state[key] for key in state if key.startswith(("features.0", "features.3"))}, tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"two.pth, 2 of 5 layers fit this network"):
        lenet(10, tmp_path / "two.pth")


# One with further outputs while it is trained, and one that is built for a size.
@pytest.mark.parametrize(("name", "size"), [("squeezenet1_1", 64), ("googlenet", 32), ("vit_b_32", 64)])
def test_any_classifier_of_torchvision_is_known_by_its_name(name, size):
    network = build_network(ModelConfig(network=name), 3, size)
    assert network.training
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 3)


@pytest.mark.parametrize(("name", "usual"), [("vit_b_32", 224), ("inception_v3", 299)])
def test_a_size_that_a_network_of_torchvision_does_not_take(name, usual):
    words = (
        rf"^model\.network is {name}, which does not take images of 33 px \(.*\): set model\.input_size={usual}, its"
    )
    with pytest.raises(UserError, match=words):
        build_network(ModelConfig(network=name), 3, 33)


@pytest.mark.parametrize(("name", "near"), [("resnet81", "resnet18"), ("alexnett", "alexnet")])
def test_a_network_that_is_not_known_is_told_with_those_near_it(name, near):
    with pytest.raises(ValidationError, match=f"no network of this name; .*{near}"):
        ModelConfig(network=name)


def test_no_weights_are_published_for_lenet():
    config = ModelConfig(network="lenet5", weights="imagenet")
    with pytest.raises(UserError, match=r"^model.weights is imagenet, and none are published for lenet5: leave"):
        started(config, 10)


def test_published_weights_say_how_their_pixels_were_normalized(tmp_path):
    torch.save(lenet(10).state_dict(), tmp_path / "lenet.pth")
    network = build_network(ModelConfig(network="efficientnet_lite0"), 3, 32)
    lite = start_from_weights(network, ModelConfig(network="efficientnet_lite0", weights="imagenet"))
    assert lite is not None
    # (127 / 255 - mean) / std is 0, and a step of 128 of 255 is 1
    assert [(127 / 255 - lite.mean[0]) / lite.std[0], (255 / 255 - lite.mean[0]) / lite.std[0]] == [0, 1]
    config = ModelConfig(network="lenet5", weights=tmp_path / "lenet.pth")
    assert start_from_weights(build_network(config, 10, 32), config) is None
