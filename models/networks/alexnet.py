import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Literal, NamedTuple

from torch import Tensor, nn

from core.errors import UserError
from models.networks.alexnet_layers import AdaptiveAverage, LocalResponseNorm
from models.networks.family import Family, Options
from models.networks.weights import IMAGENET

GRID = 6
"""Maximum side of the feature map before the classifier, as in the paper and in torchvision."""


@dataclass(frozen=True)
class AlexNetSpec:
    """Variant of AlexNet. The number of classes and the input size are arguments of the network."""

    channels: tuple[int, int, int, int, int]
    """channels of the published conv1 to conv5, before `width`"""
    activation: Literal["relu", "tanh"] = "relu"
    normalization: Literal["none", "lrn", "batch"] = "none"
    """lrn: after the activations of conv1 and conv2, as in the paper; batch: before every activation"""
    pooling: Literal["overlapping", "plain"] = "overlapping"
    """overlapping: max pooling over 3x3 with stride 2; plain: over 2x2 with stride 2"""
    dropout: float = 0.5
    """dropout probability in each of the two hidden layers"""
    dropout_at: Literal["inputs", "outputs"] = "inputs"
    """place of dropout in the hidden layers: outputs in the paper, inputs in "one weird trick" and torchvision"""
    groups: Literal[1, 2] = 1
    """2: conv2, conv4 and conv5 see only their own half of the channels, as on the paper's two GPUs"""
    num_conv_layers: int = 5
    """2 to 8"""
    width: float = 1.0
    """factor for channels and hidden units, which are rounded to multiples of 8"""
    padded_stem: bool = True
    """zero padding of the image; the paper has none, and therefore needs 227 pixels instead of 224"""
    initialization: Literal["paper", "torch", "kaiming"] = "torch"
    """paper: N(0, 0.01) and biases of 1; torch: torchvision's; kaiming: keeps the variance from layer to layer"""

    def scaled(self, number: int) -> int:
        """Scale channels or units by `width`, to a multiple of 8, for two groups and vector instructions."""
        return max(8, round(number * self.width / 8) * 8)


PRESETS: Mapping[str, AlexNetSpec] = {
    # Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural networks".
    "2012": AlexNetSpec(
        channels=(96, 256, 384, 384, 256),
        normalization="lrn",
        dropout_at="outputs",
        groups=2,
        padded_stem=False,
        initialization="paper",
    ),
    # Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", as torchvision has it.
    "owt": AlexNetSpec(channels=(64, 192, 384, 256, 256)),
    # Hidden layers are normalized too. After four epochs on the digits (batch size 64), learning rates 0.02, 0.05 and
    # 0.1 reach 99 %. If only the convolutions are normalized, the first two rates reach 96 and 26 %.
    "bn": AlexNetSpec(
        channels=(64, 192, 384, 256, 256), normalization="batch", dropout_at="outputs", initialization="kaiming"
    ),
}


class _Stem(NamedTuple):
    from_size: int
    kernel: int
    stride: int
    padding: int
    hidden: int


# The first convolution and the number of hidden units, by input size. The published 11x11 with stride 4 leaves nothing
# of a small image. With these rows, a padded feature map is at least 3x3 from 32 pixels on, and multiply-adds are below
# 1.2 times the number at 224 pixels. After a small feature map, 4,096 hidden units would mean 100 MB of weights.
STEMS = (
    _Stem(from_size=128, kernel=11, stride=4, padding=2, hidden=4096),
    _Stem(from_size=64, kernel=7, stride=2, padding=3, hidden=2048),
    _Stem(from_size=0, kernel=5, stride=1, padding=2, hidden=1024),
)


class AlexNet(nn.Module):
    """AlexNet in the variant `spec`: images [N, 3, input_size, input_size] to logits [N, num_classes].

    Preset owt has the layout and the state_dict of torchvision's `alexnet`.

    Raises:
        UserError: the poolings would leave nothing of an image of `input_size`.

    """

    def __init__(self, spec: AlexNetSpec = PRESETS["bn"], *, num_classes: int = 1000, input_size: int = 224) -> None:
        super().__init__()
        assert 2 <= spec.num_conv_layers <= 8
        self.spec = spec
        side = feature_side(spec, input_size)
        grid = min(GRID, side)
        hidden = spec.scaled(_stem(input_size).hidden)
        num_features = spec.scaled(spec.channels[_places(spec.num_conv_layers)[-1]]) * grid**2
        self.features = nn.Sequential(*_features(spec, input_size))
        self.avgpool = AdaptiveAverage(side, grid) if side > grid else nn.Identity()
        self.classifier = nn.Sequential(*_hidden(spec, (num_features, hidden, hidden)), nn.Linear(hidden, num_classes))
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images, [N, 3, input_size, input_size], into logits [N, num_classes]."""
        features = self.avgpool(self.features(images))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def feature_side(spec: AlexNetSpec, input_size: int) -> int:
    """Side of the feature map, in cells, after the convolutional layers, for an image of `input_size` pixels.

    Raises:
        UserError: no cell is left.

    """
    side = _feature_side(spec, input_size)
    if side < 1:
        smallest = next(size for size in count(input_size) if _feature_side(spec, size) >= 1)
        plain_fits = _feature_side(replace(spec, pooling="plain"), input_size) >= 1
        raise UserError(
            f"model.input_size is {input_size}, too small for alexnet's {_num_poolings(spec)} poolings: give "
            f"model.input_size (or data.size, where it is null) at least {smallest} pixels"
            + (", or set model.pooling to plain" if plain_fits else "")
        )
    return side


def _feature_side(spec: AlexNetSpec, input_size: int) -> int:
    stem = _stem(input_size)
    padding = stem.padding if spec.padded_stem else 0
    side = (input_size + 2 * padding - stem.kernel) // stem.stride + 1
    for _ in range(_num_poolings(spec)):
        side = (side - _window(spec)) // 2 + 1
    return side


def _stem(input_size: int) -> _Stem:
    return next(stem for stem in STEMS if input_size >= stem.from_size)


def _window(spec: AlexNetSpec) -> int:
    return 3 if spec.pooling == "overlapping" else 2


def _num_poolings(spec: AlexNetSpec) -> int:
    """One after conv1, one after conv2, one after the last layer, which may be conv2."""
    return min(3, spec.num_conv_layers)


def _places(num_conv_layers: int) -> tuple[int, ...]:
    """Return the published layer of each layer, 0 for conv1.

    conv3 to conv5 share one resolution, so they can be removed or repeated: 4 layers are without conv4, 3 also without
    conv3, 2 also without conv5. Additional layers are copies of conv4: 6 layers have two of it, 8 layers have four.
    """
    middle = (2, *[3] * (num_conv_layers - 4)) if num_conv_layers > 3 else ()
    return (0, 1, *middle, 4)[:num_conv_layers]


def _features(spec: AlexNetSpec, input_size: int) -> Iterator[nn.Module]:
    in_channels = 3
    for layer, place in enumerate(_places(spec.num_conv_layers), start=1):
        convolution = _convolution(spec, place, in_channels, _stem(input_size))
        in_channels = convolution.out_channels
        yield convolution
        if spec.normalization == "batch":
            yield nn.BatchNorm2d(in_channels)
        yield _activation(spec)
        if spec.normalization == "lrn" and place < 2:
            yield LocalResponseNorm()
        if place < 2 or layer == spec.num_conv_layers:
            yield nn.MaxPool2d(_window(spec), stride=2)


def _convolution(spec: AlexNetSpec, place: int, in_channels: int, stem: _Stem) -> nn.Conv2d:
    out_channels = spec.scaled(spec.channels[place])
    if place == 0:
        padding = stem.padding if spec.padded_stem else 0
        return nn.Conv2d(3, out_channels, stem.kernel, stem.stride, padding, bias=_has_bias(spec))
    groups = 1 if place == 2 else spec.groups  # the two towers meet in conv3
    kernel = 5 if place == 1 else 3
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=_has_bias(spec))


def _hidden(spec: AlexNetSpec, sizes: tuple[int, ...]) -> Iterator[nn.Module]:
    for num_inputs, num_outputs in pairwise(sizes):
        if spec.dropout_at == "inputs":
            yield nn.Dropout(spec.dropout)
        yield nn.Linear(num_inputs, num_outputs, bias=_has_bias(spec))
        if spec.normalization == "batch":
            yield nn.BatchNorm1d(num_outputs)
        yield _activation(spec)
        if spec.dropout_at == "outputs":
            yield nn.Dropout(spec.dropout)


def _has_bias(spec: AlexNetSpec) -> bool:
    """Whether layers have a bias. Batch normalization removes a bias in front of it, and adds its own."""
    return spec.normalization != "batch"


def _activation(spec: AlexNetSpec) -> nn.Module:
    return nn.ReLU(inplace=True) if spec.activation == "relu" else nn.Tanh()


def _initialize(network: AlexNet) -> None:
    convolutions = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    *hidden, last = [layer for layer in network.classifier if isinstance(layer, nn.Linear)]
    if network.spec.initialization == "paper":
        _initialize_as_paper(convolutions, hidden, last)
    elif network.spec.initialization == "kaiming":
        _initialize_as_kaiming(convolutions, hidden, last, network.spec.activation)


def _initialize_as_paper(convolutions: list[nn.Conv2d], hidden: list[nn.Linear], last: nn.Linear) -> None:
    """Section 5 of the paper. Biases of 1 give the ReLUs positive inputs from the start."""
    for place, convolution in zip(_places(len(convolutions)), convolutions, strict=True):
        _fill(convolution, std=0.01, bias=0.0 if place in (0, 2) else 1.0)
    for linear in hidden:
        _fill(linear, std=0.01, bias=1.0)
    _fill(last, std=0.01, bias=0.0)


def _initialize_as_kaiming(
    convolutions: list[nn.Conv2d], hidden: list[nn.Linear], last: nn.Linear, activation: Literal["relu", "tanh"]
) -> None:
    """He et al. 2015. The last layer starts near 0, so that the first loss is that of guessing, ln(num_classes)."""
    gain = nn.init.calculate_gain(activation)
    for convolution in convolutions:
        fan_out = convolution.out_channels * math.prod(convolution.kernel_size) / convolution.groups
        _fill(convolution, std=gain / math.sqrt(fan_out), bias=0.0)
    for linear in hidden:
        _fill(linear, std=gain / math.sqrt(linear.in_features), bias=0.0)
    _fill(last, std=0.01, bias=0.0)


def _fill(layer: nn.Conv2d | nn.Linear, *, std: float, bias: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    if isinstance(layer.bias, Tensor):
        nn.init.constant_(layer.bias, bias)


def _build(_: str, num_classes: int, input_size: int, preset: str | None, options: Options) -> nn.Module:
    spec = replace(PRESETS[str(preset)], **options)
    return AlexNet(spec, num_classes=num_classes, input_size=input_size)


FAMILY = Family(
    _build,
    presets=("bn", "owt", "2012"),
    options={
        "width": (),
        "num_conv_layers": (),
        "groups": (),
        "activation": (),
        "normalization": (),
        "pooling": ("overlapping", "plain"),
        "dropout": (),
    },
    normalization=IMAGENET,
)
