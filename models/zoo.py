import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from data.decode import Normalization
from data.errors import UserError
from models import alexnet, efficientnet_lite, lenet
from models.config import ModelConfig
from models.weights import IMAGENET, LITE, load_weights, published_weights, read_weights

Options = Mapping[str, Any]

_log = logging.getLogger("convoy")


def build_network(config: ModelConfig, num_classes: int, input_size: int) -> nn.Module:
    """Build the network that the config names, on the CPU: images [N, 3, input_size, input_size] to logits.

    Its weights are drawn anew, whatever `config.weights` says.

    Raises:
        UserError: a preset, option or input size that the network does not have.

    """
    family = _family(config)
    return family.build(num_classes, input_size, _preset(config, family), _options(config, family))


def start_from_weights(network: nn.Module, config: ModelConfig) -> Normalization | None:
    """Load `config.weights` into the layers of `network` that they fit; one line in the log says which start anew.

    Returns:
        How the pixels were normalized that the weights were trained on; None where there are no weights, or nobody
        knows.

    Raises:
        UserError: the weights cannot be had or read, or belong to another network.

    """
    if config.weights is None:
        return None
    weights = published_weights(config.network) if config.weights == "imagenet" else read_weights(config.weights)
    _log.info("train: %s", load_weights(network, weights))
    return weights.normalization or _family(config).normalization


@dataclass(frozen=True)
class _Family:
    """Networks of one name, and what of ModelConfig they have."""

    build: Callable[[int, int, str | None, Options], nn.Module]
    """from num_classes, input_size, preset and the options that are set"""
    presets: tuple[str, ...] = ()
    """the default first"""
    options: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """fields and their choices; no choices: whatever ModelConfig allows"""
    normalization: Normalization | None = None
    """of the pixels that published weights were trained on"""
    channels_last: bool = True
    """whether a CPU computes it faster with the channels of a pixel side by side in memory"""


def _alexnet(num_classes: int, input_size: int, preset: str | None, options: Options) -> nn.Module:
    spec = replace(alexnet.PRESETS[str(preset)], **options)
    return alexnet.AlexNet(spec, num_classes=num_classes, input_size=input_size)


def _lenet5(num_classes: int, input_size: int, preset: str | None, options: Options) -> nn.Module:
    spec = replace(lenet.PRESETS[str(preset)], **options)
    return lenet.LeNet5(spec, num_classes=num_classes, input_size=input_size)


def _efficientnet_lite(name: str, num_classes: int, *_: object) -> nn.Module:
    return efficientnet_lite.EfficientNetLite(efficientnet_lite.SPECS[name], num_classes=num_classes)


def _torchvision(name: str, num_classes: int, *_: object) -> nn.Module:
    import torchvision  # here, because it takes 8 s and the other networks do without

    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return network


_FAMILIES: Mapping[str, _Family] = {
    "alexnet": _Family(
        _alexnet,
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
    ),
    "lenet5": _Family(
        _lenet5,
        presets=("relu", "1998"),
        options={"activation": (), "pooling": ("plain", "average")},
        channels_last=False,
    ),
    **{name: _Family(partial(_efficientnet_lite, name), normalization=LITE) for name in efficientnet_lite.SPECS},
}
"""Networks of our own; every other name is one of torchvision's."""


def _family(config: ModelConfig) -> _Family:
    return _FAMILIES.get(config.network) or _Family(partial(_torchvision, config.network), normalization=IMAGENET)


def computes_channels_last(config: ModelConfig) -> bool:
    """Whether a CPU computes the network faster with the channels of a pixel side by side in memory."""
    return _family(config).channels_last


def _preset(config: ModelConfig, family: _Family) -> str | None:
    if config.preset is None:
        return next(iter(family.presets), None)
    if config.preset not in family.presets:
        known = f"one of {', '.join(family.presets)}" if family.presets else "null"
        raise UserError(f"model.preset is {config.preset}, which {config.network} does not have: make it {known}")
    return config.preset


def _options(config: ModelConfig, family: _Family) -> Options:
    """Fields that are set to other than their default, which keeps the preset's value."""
    options = config.model_dump(exclude={"network", "preset", "input_size", "weights"}, exclude_defaults=True)
    for name, value in options.items():
        if name not in family.options:
            default = ModelConfig.model_fields[name].default
            others = f", which has {', '.join(family.options)}" if family.options else ""
            raise UserError(
                f"model.{name} is {value}, which is no option of {config.network}{others}: "
                f"leave it {'null' if default is None else default}"
            )
        choices = family.options[name]
        if choices and value not in choices:
            known = " or ".join(map(str, choices))
            raise UserError(f"model.{name} is {value}, which {config.network} does not have: make it {known}")
    return options
