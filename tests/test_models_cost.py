import pytest
import torch
from torch import nn

from models.config import ModelConfig
from models.networks.cost import measure_layers
from models.networks.registry import build_network
from models.networks.roofline import Machine, Timing, predict_seconds, time_network
from models.networks.roofline_page import draw_page, summarize, table

MACHINE = Machine(operations_per_second=1e9, bytes_per_second=1e8, num_threads=2)
"""Its roof has its corner at 10 operations per byte."""


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.convolution(images)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def test_each_layer_has_its_own_figures():
    convolution, relu, linear = measure_layers(plain(), 8).layers
    assert (convolution.name, convolution.kind, convolution.num_parameters) == ("0", "Conv2d", 4 * 3 * 9 + 4)
    assert convolution.multiply_adds == 8 * 8 * 4 * 3 * 9
    assert (convolution.weight_bytes, convolution.activation_bytes) == (4 * 112, 4 * (3 * 64 + 4 * 64))
    assert (relu.multiply_adds, relu.weight_bytes, relu.activation_bytes) == (0, 0, 4 * 2 * 256)
    assert (linear.multiply_adds, linear.weight_bytes, linear.activation_bytes) == (2560, 4 * 2570, 4 * 266)
    assert linear.intensity == 2 * 2560 / (4 * (2570 + 266))


def test_memory_is_used_again_once_its_last_reader_is_done():
    # An image of 8 px has 768 bytes, what is convolved from it 1,024.
    assert measure_layers(plain(), 8).peak_bytes == 1024 + 1024
    in_place = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
    assert measure_layers(in_place, 8).peak_bytes == 768 + 1024
    # The image is kept until it is added.
    cost = measure_layers(Residual(), 8)
    assert cost.peak_bytes == 3 * 768
    assert {layer.kind: layer.activation_bytes for layer in cost.layers} == {"Residual": 3 * 768, "Conv2d": 2 * 768}


@pytest.mark.parametrize(
    ("network", "size", "parameters", "multiply_adds"),
    # AlexNet and LeNet are counted in their own tests; torchvision tells these, MobileNet's as 56.5 million.
    [("mobilenet_v3_small", 224, 2_542_856, 56.5e6), ("resnet18", 224, 11_689_512, 1.81e9)],
)
def test_the_layers_of_known_networks_add_up(network, size, parameters, multiply_adds):
    cost = measure_layers(build_network(ModelConfig(network=network), 1000, size), size)
    assert cost.num_parameters == sum(layer.num_parameters for layer in cost.layers) == parameters
    assert cost.multiply_adds == pytest.approx(multiply_adds, rel=0.01)
    assert cost.weight_bytes >= 4 * parameters


def test_counting_leaves_a_network_as_it_was():
    network = plain().train()
    before = [each.clone() for each in network.parameters()]
    measure_layers(network, 8)
    time_network(network, 8)
    assert all(layer.training for layer in network.modules())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())
    assert all(map(torch.equal, before, network.parameters()))


def test_a_layer_takes_as_long_as_its_slower_side():
    linear = measure_layers(plain(), 8).layers[-1]
    assert MACHINE.is_bound_by_memory(linear)
    assert MACHINE.seconds(linear) == (linear.weight_bytes + linear.activation_bytes) / 1e8
    slow = Machine(operations_per_second=1e6, bytes_per_second=1e9, num_threads=2)
    assert not slow.is_bound_by_memory(linear)
    assert slow.seconds(linear) == 2 * 2560 / 1e6


def test_a_layer_that_is_used_twice_is_timed_twice():
    relu = nn.ReLU()
    timing = time_network(nn.Sequential(relu, nn.Conv2d(3, 3, 1), relu), 8)
    assert timing.layers.keys() == {"", "0", "1"}
    assert all(seconds > 0 for seconds in (timing.total, *timing.layers.values()))


def test_the_page_shows_each_layer_that_multiplies():
    cost = measure_layers(plain(), 8)
    timing = Timing(0.004, {"": 0.0, "0": 0.001, "1": 0.001, "2": 0.0, "3": 0.002})
    page = draw_page("two <layers>", cost, MACHINE, timing)
    assert page.count("<circle") == 2
    assert page.count("<tr>") == 1 + 3
    assert "two &lt;layers&gt;" in page
    assert "http" not in page
    assert [row[7] for row in table(cost, MACHINE, timing)] == ["memory", "memory", "memory"]
    text = summarize(cost, MACHINE, timing)
    assert f"predicted {1000 * predict_seconds(MACHINE, cost):.2f} ms, measured 4.00 ms" in text
