import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalResponseNorm(nn.Module):
    """b_i = a_i / (k + alpha * sum of a_j^2 over the n neighbouring channels)^beta (Krizhevsky 2012, section 3.3).

    Keeps the shape [N, C, H, W]. `torch.nn.LocalResponseNorm` divides alpha by n, unlike the paper, and pools in three
    dimensions, which takes 3 times as long on a CPU.
    """

    def __init__(self, n: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        self.n, self.alpha, self.beta, self.k = n, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        """Normalize activations of shape [N, C, H, W]."""
        num_channels = x.shape[1]
        # Always in float32: near k = 2, bf16 has steps of 1/64.
        squares = F.pad(x.float().square(), (0, 0, 0, 0, self.n // 2, (self.n - 1) // 2))
        energy = squares[:, :num_channels]
        for shift in range(1, self.n):
            energy = energy + squares[:, shift : shift + num_channels]
        return x * (self.k + self.alpha * energy).pow(-self.beta).to(x.dtype)


class AdaptiveAverage(nn.Module):
    """`nn.AdaptiveAvgPool2d` between two known grids, as two products with a constant matrix.

    The values are the same. ONNX has no adaptive pooling, and torch exports it only to sizes that divide the grid.
    """

    windows: Tensor

    def __init__(self, side: int, target: int) -> None:
        super().__init__()
        windows = torch.zeros(target, side)
        for row in range(target):
            start, end = row * side // target, math.ceil((row + 1) * side / target)
            windows[row, start:end] = 1 / (end - start)
        self.register_buffer("windows", windows, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Average [N, C, side, side] into [N, C, target, target]."""
        return self.windows @ x @ self.windows.T
