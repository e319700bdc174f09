"""What a network costs to keep and to run, counted from the operations of one image, layer by layer."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Complexity(NamedTuple):
    """What a network costs to keep and to run."""

    num_parameters: int
    multiply_adds: int
    """of the convolutions and linear layers, for one image; a multiplication and its addition count as one"""


@dataclass
class LayerCost:
    """What one layer costs for one image; what a block computes between its layers is its own."""

    name: str
    kind: str
    num_parameters: int
    multiply_adds: int = 0
    weight_bytes: int = 0
    """parameters and statistics that it reads"""
    activation_bytes: int = 0
    """that its operations read and write, in memory or in a cache"""

    @property
    def intensity(self) -> float:
        """Operations per byte that is moved; a multiplication and its addition are two."""
        moved = self.weight_bytes + self.activation_bytes
        return 2 * self.multiply_adds / moved if moved else 0.0


class NetworkCost(NamedTuple):
    """What a network costs for one image, in the precision of its weights."""

    num_parameters: int
    layers: list[LayerCost]
    """those that compute or hold something, in the order of their computation"""
    peak_bytes: int
    """most memory that activations take at a time, where the memory of one that was read last is used again"""

    @property
    def multiply_adds(self) -> int:
        """Of all layers."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Of all layers."""
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Of all layers."""
        return sum(layer.activation_bytes for layer in self.layers)


def measure(network: nn.Module, input_size: int) -> Complexity:
    """Count parameters, and multiply-adds for one image of shape [3, input_size, input_size].

    The network classifies one black image, on the device where it is, and is left as it was.
    """
    cost = measure_layers(network, input_size)
    return Complexity(cost.num_parameters, cost.multiply_adds)


def measure_layers(network: nn.Module, input_size: int) -> NetworkCost:
    """Count what each layer costs for one image of shape [3, input_size, input_size]; as `measure` does it."""
    trace = _Trace(network)
    with trace.following():
        _classify_black(network, 1, input_size)
    layers = [layer for layer in trace.layers.values() if layer.num_parameters or layer.activation_bytes]
    return NetworkCost(sum(each.numel() for each in network.parameters()), layers, trace.peak_bytes())


def output_shape(network: nn.Module, input_size: int) -> tuple[int, ...] | None:
    """Give the shape of the output for two images of shape [3, input_size, input_size]; None: it is no tensor."""
    output = _classify_black(network, 2, input_size)
    return tuple(output.shape) if isinstance(output, Tensor) else None


def black_images(network: nn.Module, num_images: int, input_size: int) -> Tensor:
    """Make images [num_images, 3, input_size, input_size] on the network's device and in its precision."""
    example = next(network.parameters(), torch.zeros(()))
    return example.new_zeros(num_images, 3, input_size, input_size)


def _classify_black(network: nn.Module, num_images: int, input_size: int) -> object:
    with evaluating(network), torch.no_grad():
        return network(black_images(network, num_images, input_size))


@dataclass
class _Life:
    """The memory of one activation, from the operation that made it to the last one that read it."""

    tensor: Tensor
    """keeps the memory from being used again, so that its address names it"""
    born: int
    died: int = field(default=0)


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation, and the layer that it is of."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {module: name for name, module in network.named_modules()}
        self._weights = {_address(each) for each in (*network.parameters(), *network.buffers())}
        self._stack: list[nn.Module] = []
        self._lives: dict[int, _Life] = {}
        self._time = 0
        self.layers: dict[nn.Module, LayerCost] = {}

    @contextmanager
    def following(self) -> Iterator[None]:
        """See what is computed in the block."""

        def enter(module: nn.Module, _: tuple[Tensor, ...]) -> None:
            self._stack.append(module)

        def leave(_module: nn.Module, _: tuple[Tensor, ...], _output: Tensor) -> None:
            self._stack.pop()

        with ExitStack() as stack:
            for module in self._names:
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
            stack.enter_context(self)
            yield

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch would import its compiler, which takes 4 s

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if self._stack:
            self._count(function, args, kwargs or {}, output)
        return output

    def peak_bytes(self) -> int:
        """Give the most memory of activations at a time."""
        changes = [0] * (self._time + 2)
        for life in self._lives.values():
            changes[life.born] += _num_bytes(life.tensor)
            changes[life.died + 1] -= _num_bytes(life.tensor)
        peak = held = 0
        for change in changes:
            held += change
            peak = max(peak, held)
        return peak

    def _count(self, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        module = self._stack[-1]
        parameters = sum(each.numel() for each in module.parameters(recurse=False))
        layer = self.layers.setdefault(module, LayerCost(self._names[module], type(module).__name__, parameters))
        read = {_address(each): each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        written = {_address(each): each for each in tree_leaves(output) if isinstance(each, Tensor)}
        self._time += 1
        for address, tensor in (read | written).items():
            if address not in self._weights:
                self._lives.setdefault(address, _Life(tensor, self._time)).died = self._time
        if _is_view(function):
            return
        for address, tensor in (*read.items(), *written.items()):
            size = tensor.numel() * tensor.element_size()
            if address in self._weights:
                layer.weight_bytes += size
            else:
                layer.activation_bytes += size
        if formula := flop_registry.get(function.overloadpacket):
            layer.multiply_adds += formula(*args, **kwargs, out_val=output) // 2


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _num_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _is_view(function: Any) -> bool:
    """Whether an operation moves nothing, but sees its input in another shape."""
    aliases = [each.alias_info for each in function._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Hold evaluation mode; each layer goes back to its own mode, as layers may have been frozen one by one."""
    training = [(layer, layer.training) for layer in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for layer, was_training in training:
            layer.training = was_training
