"""Profile of a step: by kernel as the step runs, and by layer, each alone."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.device import Timing, seconds_of, synchronize

if TYPE_CHECKING:
    from benchmarks.gpu.synthetic import Step

NUM_STEPS = 3
NUM_KERNELS = 30


def kernels_of(step: "Step") -> dict[str, float]:
    """Return the milliseconds per step of the slowest kernels, largest first; on a CPU, of operations."""
    device = step.images.device
    on_gpu = device.type == "cuda"
    for _ in range(NUM_STEPS):
        step()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(NUM_STEPS):
            step()
        synchronize(device)
    times = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / NUM_STEPS
        for event in profiler.key_averages()
    }
    largest = sorted(times.items(), key=lambda item: -item[1])[:NUM_KERNELS]
    return {name: milliseconds for name, milliseconds in largest if milliseconds > 0}


def layers_of(step: "Step") -> dict[str, float]:
    """Return the milliseconds of each layer, forward and backward on its input in the step, and of the optimizer."""
    inputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _layer, given, name=name: inputs.update({name: given[0].detach()}))
        for name, layer in step.network.named_modules()
        if not list(layer.children())
    ]
    step()
    for hook in hooks:
        hook.remove()
    device = step.images.device
    timing = Timing(2, 0.05 if device.type == "cuda" else 0.0)
    layers = dict(step.network.named_modules())
    times = {f"{name} {type(layers[name]).__name__}": _layer_ms(layers[name], inputs[name], timing) for name in inputs}
    step()
    times["optimizer"] = 1000 * seconds_of(step.optimizer.step, device, timing)
    return times


def _layer_ms(layer: nn.Module, given: Tensor, timing: Timing) -> float:
    needs_input_gradient = given.shape[1] != 3  # images need no gradient
    if isinstance(layer, nn.ReLU):
        layer.inplace = False  # a leaf with a gradient must not be changed in place
    given = given.clone().requires_grad_(needs_input_gradient)
    wanted = [*layer.parameters(), *([given] if needs_input_gradient else [])]
    if not wanted:
        return 0.0

    def run() -> None:
        with torch.autocast(given.device.type, torch.bfloat16):
            output = layer(given)
        torch.autograd.grad(output, wanted, torch.ones_like(output))

    return 1000 * seconds_of(run, given.device, timing)
