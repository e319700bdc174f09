from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

TRUST = 0.001
"""Length of a step relative to the length of the weights, as in the paper."""


class LARS(Optimizer):
    """SGD with momentum whose rate is scaled for each layer (You, Gitman and Ginsburg 2017, algorithm 1).

    For weights w, gradients g, decay b and momentum m, each layer steps by
    `v = m v + lr s (g + b w)`, `w = w - v`, where `s = trust |w| / (|g| + b |w|)`. The step of a layer is therefore
    limited by the size of its weights, even if the rate is scaled with the batch. Groups with `adapt=False` (biases and
    normalization) have s = 1, and so have layers whose weights or gradients are all 0.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        trust: float = TRUST,
    ) -> None:
        """Take parameters, or groups of parameters."""
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step. The optional closure computes loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(weights, group)
        return loss

    def _step_group(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Step all layers at once, in a few passes over the memory, like torch's own optimizers."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        decay = group["weight_decay"]
        scales = _scales(weights, gradients, decay, group["trust"]) if group["adapt"] else None
        updates = torch._foreach_add(gradients, weights, alpha=decay)
        if scales is not None:
            torch._foreach_mul_(updates, scales)
        velocities = [self._velocity(weight) for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates, alpha=group["lr"])
        torch._foreach_sub_(weights, velocities)

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        return velocity


def _scales(weights: list[Tensor], gradients: list[Tensor], decay: float, trust: float) -> list[Tensor]:
    lengths = zip(torch._foreach_norm(weights), torch._foreach_norm(gradients), strict=True)
    return [
        torch.where((weight > 0) & (gradient > 0), trust * weight / (gradient + decay * weight), 1.0)
        for weight, gradient in lengths
    ]
