from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Complexity(NamedTuple):
    """Size and computational cost of a network."""

    num_parameters: int
    multiply_adds: int
    """in convolutions and linear layers, for one image; a multiplication and its addition count as one"""


def measure(network: nn.Module, input_size: int) -> Complexity:
    """Count parameters, and multiply-adds for one image of shape [3, input_size, input_size].

    The network classifies one black image on its own device. Its state does not change.
    """
    multiply_adds = 0

    def add(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal multiply_adds
        assert isinstance(layer.weight, Tensor)
        multiply_adds += output.numel() * layer.weight[0].numel()

    with ExitStack() as stack:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                stack.callback(layer.register_forward_hook(add).remove)
        _classify_black(network, 1, input_size)
    return Complexity(sum(parameter.numel() for parameter in network.parameters()), multiply_adds)


def output_shape(network: nn.Module, input_size: int) -> tuple[int, ...] | None:
    """Return the shape of the output for two images [3, input_size, input_size], or None if it is no tensor."""
    output = _classify_black(network, 2, input_size)
    return tuple(output.shape) if isinstance(output, Tensor) else None


def _classify_black(network: nn.Module, num_images: int, input_size: int) -> object:
    example = next(network.parameters(), torch.zeros(()))
    with _evaluating(network), torch.no_grad():
        return network(example.new_zeros(num_images, 3, input_size, input_size))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Hold evaluation mode. Afterwards, each layer returns to its own mode, because single layers may be frozen."""
    training = [(layer, layer.training) for layer in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for layer, was_training in training:
            layer.training = was_training
