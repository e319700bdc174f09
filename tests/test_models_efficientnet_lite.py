from pathlib import Path

import numpy as np
import pytest
import torch

from data.images.decode import Preprocessing, decode
from models.config import ModelConfig
from models.networks.efficientnet_lite import LITE, published_name, published_weights
from models.networks.registry import build_network, start_from_weights

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "clothing10" / "test"


def images(size=224):
    """Photographs where there are any, else noise: uint8 [4, size, size, 3]."""
    files = sorted(PHOTOGRAPHS.glob("*/*.jpg"))[::100][:4]
    if not files:
        return np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    spec = Preprocessing(size=size, crop=size, max_pixels=10**8)
    return np.stack([decode(file.read_bytes(), spec) for file in files])


def test_logits_are_those_of_the_published_network():
    """efficientnet-lite-pytorch has the same weights under other names; its input is (pixel - 127) / 128."""
    from efficientnet_lite_pytorch import EfficientNet

    config = ModelConfig(network="efficientnet_lite0", weights="imagenet")
    ours = build_network(config, 1000, 224).eval()
    assert start_from_weights(ours, config) == LITE
    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    published = published_weights("efficientnet_lite0").tensors
    theirs.load_state_dict({published_name(name): tensor for name, tensor in published.items()})
    pixels = (torch.from_numpy(images()).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        torch.testing.assert_close(ours(pixels), theirs(pixels), rtol=1e-5, atol=1e-5)


# Tan and Le's compound scaling; lite0's count is also that of its published weights.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("efficientnet_lite0", 4_652_008), ("efficientnet_lite1", 5_416_680), ("efficientnet_lite2", 6_092_072)],
)
def test_numbers_of_parameters(name, parameters):
    network = build_network(ModelConfig(network=name), 1000, 224)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("size", [32, 33, 160])
def test_any_size_of_images(size):
    network = build_network(ModelConfig(network="efficientnet_lite0"), 7, size).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)
