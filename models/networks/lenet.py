from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from core.errors import UserError
from models.networks.family import Family, Options

SMALLEST = 16
"""Minimum input size in pixels: 16 - 4 = 12, halved 6, 6 - 4 = 2, halved 1, the minimum of the third convolution."""


@dataclass(frozen=True)
class LeNetSpec:
    """Variant of LeNet-5."""

    activation: Literal["relu", "tanh"]
    """tanh: the paper's 1.7159 tanh(2a/3)"""
    pooling: Literal["plain", "average"]
    """over 2x2 with stride 2; plain: max pooling"""


PRESETS: Mapping[str, LeNetSpec] = {
    "1998": LeNetSpec(activation="tanh", pooling="average"),
    "relu": LeNetSpec(activation="relu", pooling="plain"),
}


class ScaledTanh(nn.Module):
    """1.7159 tanh(2a/3), with f(1) = 1 and f(-1) = -1 (LeCun et al. 1998, appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to activations of any shape."""
        return 1.7159 * torch.tanh(2 / 3 * x)


class Luminance(nn.Module):
    """Colour images [N, 3, H, W] to grey images [N, 1, H, W], with the weights of ITU-R BT.601 and Pillow's mode L."""

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted sum of the three channels."""
        return (images * self.weights).sum(dim=1, keepdim=True)


class LeNet5(nn.Module):
    """LeNet-5: images [N, 3, input_size, input_size] to logits [N, num_classes].

    Layers and sizes are those of LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document
    recognition". As in most reimplementations, the second convolution sees all six maps instead of subsets, subsampling
    has no trained coefficients, and the output is linear instead of distances to drawn characters. The network has
    61,706 parameters (32 pixels, 10 classes), the paper's has 60,000.

    Raises:
        UserError: `input_size` is too small for the layers.

    """

    def __init__(self, spec: LeNetSpec = PRESETS["relu"], *, num_classes: int = 10, input_size: int = 32) -> None:
        super().__init__()
        self.spec = spec
        side = _feature_side(input_size)
        self.luminance = Luminance()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 6, kernel_size=5), _activation(spec), _pooling(spec)),
            *(nn.Conv2d(6, 16, kernel_size=5), _activation(spec), _pooling(spec)),
            # As in the paper, the third convolution covers the whole map, 5x5 at 32 pixels.
            *(nn.Conv2d(16, 120, kernel_size=side), _activation(spec)),
        )
        self.classifier = nn.Sequential(nn.Linear(120, 84), _activation(spec), nn.Linear(84, num_classes))
        for layer in self.modules():
            _initialize(layer, spec.activation)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, [N, 3, input_size, input_size], into logits [N, num_classes]."""
        logits: Tensor = self.classifier(self.features(self.luminance(images)).flatten(1))
        return logits


def _feature_side(input_size: int) -> int:
    if input_size < SMALLEST:
        raise UserError(
            f"model.input_size is {input_size}, too small for lenet5: "
            f"give model.input_size (or data.size, where it is null) at least {SMALLEST} pixels"
        )
    return ((input_size - 4) // 2 - 4) // 2


def _activation(spec: LeNetSpec) -> nn.Module:
    return ScaledTanh() if spec.activation == "tanh" else nn.ReLU(inplace=True)


def _pooling(spec: LeNetSpec) -> nn.Module:
    return nn.AvgPool2d(2) if spec.pooling == "average" else nn.MaxPool2d(2)


def _initialize(layer: nn.Module, activation: Literal["relu", "tanh"]) -> None:
    """Variance 2 / fan-in for ReLU (He et al. 2015), 1 / fan-in for the scaled tanh, whose gain is 1.

    The latter is section 4.6 of LeCun, Bottou, Orr and Mueller 1998, "Efficient BackProp". The LeNet paper draws within
    2.4 / fan-in. With this narrow range, training stays at chance, because we use one learning rate for all weights and
    the paper one for each weight.
    """
    if isinstance(layer, nn.Conv2d | nn.Linear):
        fan_in = layer.weight[0].numel()
        nn.init.normal_(layer.weight, std=((2 if activation == "relu" else 1) / fan_in) ** 0.5)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


def _build(_: str, num_classes: int, input_size: int, preset: str | None, options: Options) -> nn.Module:
    spec = replace(PRESETS[str(preset)], **options)
    return LeNet5(spec, num_classes=num_classes, input_size=input_size)


FAMILY = Family(
    _build,
    presets=("relu", "1998"),
    options={"activation": (), "pooling": ("plain", "average")},
    channels_last=False,
)
