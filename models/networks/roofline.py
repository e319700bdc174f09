"""How fast this machine computes and reads memory, and how long each layer of a network takes here.

After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (2009): a layer takes as long
as the machine needs for its operations, or for the bytes that it moves, whichever is longer.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.cost import LayerCost, NetworkCost, black_images, evaluating

ROUNDS = 20
SECONDS = 2.0
"""The rounds stop after so long, of which three are enough for a large network."""
WIDTH = 8192
"""A matrix of this many rows and columns, 268 MB, stays in no cache."""


class Machine(NamedTuple):
    """What a machine does at most, with the threads that torch has."""

    operations_per_second: float
    bytes_per_second: float
    """read from memory"""
    num_threads: int

    def seconds(self, layer: LayerCost) -> float:
        """Predict how long a layer takes for one image."""
        moved = layer.weight_bytes + layer.activation_bytes
        return max(2 * layer.multiply_adds / self.operations_per_second, moved / self.bytes_per_second)

    def is_bound_by_memory(self, layer: LayerCost) -> bool:
        """Whether moving a layer's bytes takes longer than its operations."""
        return layer.intensity < self.operations_per_second / self.bytes_per_second


class Timing(NamedTuple):
    """How long a network takes for one image."""

    total: float
    """seconds, without looking at the layers"""
    layers: dict[str, float]
    """seconds of each layer, by its name; of a block, what it computes between its layers"""


def measure_machine() -> Machine:
    """Measure how fast torch convolves in fp32, and how fast it multiplies a vector with a matrix out of memory."""
    images, kernels = torch.rand(1, 256, 13, 13), torch.rand(384, 256, 3, 3)
    operations = 2 * 384 * 13 * 13 * 256 * 9
    convolving = min(_repeat(lambda: F.conv2d(images, kernels, padding=1)))
    vector, matrix = torch.rand(1, WIDTH), torch.rand(WIDTH, WIDTH)
    reading = min(_repeat(lambda: F.linear(vector, matrix)))
    return Machine(operations / convolving, 4 * WIDTH * WIDTH / reading, torch.get_num_threads())


def time_network(network: nn.Module, input_size: int) -> Timing:
    """Time a network with one image of shape [3, input_size, input_size]; medians of several rounds."""
    image = black_images(network, 1, input_size)
    with evaluating(network):
        total = median(_repeat(lambda: network(image)))
        with _watching(network) as rounds:
            _repeat(lambda: network(image))
    # A layer that is used several times is timed as often in each round; the network itself has no name.
    return Timing(total, {name: median(each) * len(each) / len(rounds[""]) for name, each in rounds.items()})


def predict_seconds(machine: Machine, cost: NetworkCost) -> float:
    """Predict how long a network takes for one image."""
    return sum(map(machine.seconds, cost.layers))


def _repeat(run: Callable[[], object]) -> list[float]:
    seconds: list[float] = []
    with torch.no_grad():
        run()
        while len(seconds) < 3 or (len(seconds) < ROUNDS and sum(seconds) < SECONDS):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return seconds


@contextmanager
def _watching(network: nn.Module) -> Iterator[dict[str, list[float]]]:
    """Time each layer, less the layers within."""
    rounds: dict[str, list[float]] = {}
    running: list[list[float]] = []  # when it began, and the seconds of the layers within

    def enter(_module: nn.Module, _: tuple[Tensor, ...]) -> None:
        running.append([time.perf_counter(), 0.0])

    def leave_as(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def leave(_module: nn.Module, _: tuple[Tensor, ...], _output: Tensor) -> None:
            began, within = running.pop()
            seconds = time.perf_counter() - began
            rounds.setdefault(name, []).append(seconds - within)
            if running:
                running[-1][1] += seconds

        return leave

    with ExitStack() as stack:
        for name, module in network.named_modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave_as(name)).remove)
        yield rounds
