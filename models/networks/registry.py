import logging
from collections.abc import Callable
from functools import partial
from importlib import import_module

from torch import nn

from core.errors import UserError
from data.images.decode import Normalization
from models.config import NETWORKS, TORCHVISION, ModelConfig
from models.networks.cost import output_shape
from models.networks.family import Family, Options
from models.networks.weights import load_weights, read_weights

_log = logging.getLogger("convoy")


def build_network(config: ModelConfig, num_classes: int, input_size: int) -> nn.Module:
    """Build the network that the config names, on the CPU: images [N, 3, input_size, input_size] to logits.

    The weights are random, whatever `config.weights` says.

    Raises:
        UserError: the network does not have the preset, option or input size; or the user's code is missing, raises,
            or returns something else.

    """
    family = _family(config)
    return family.build(config.network, num_classes, input_size, _preset(config, family), _options(config, family))


def start_from_weights(network: nn.Module, config: ModelConfig) -> Normalization | None:
    """Load `config.weights` into the layers of `network` that they fit. One log line names the layers that stay random.

    Returns:
        Pixel normalization with which the weights were trained; None if it is unknown or there are no weights.

    Raises:
        UserError: the weights are missing or unreadable, or belong to another network.

    """
    if config.weights is None:
        return None
    family = _family(config)
    weights = family.published(config.network) if config.weights == "imagenet" else read_weights(config.weights)
    _log.info("train: %s", load_weights(network, weights))
    return weights.normalization or family.normalization


def _family(config: ModelConfig) -> Family:
    """Import the module of the network."""
    if not NETWORKS.has(config.network):
        of_torchvision: Family = import_module(TORCHVISION).FAMILY
        return of_torchvision
    found = NETWORKS.load(config.network)
    if isinstance(found, Family):
        return found
    return Family(partial(_build_added, NETWORKS.load_function(config.network, "num_classes", "input_size")))


def _build_added(
    build: Callable[[int, int], object], name: str, num_classes: int, input_size: int, *_: object
) -> nn.Module:
    """Call the user's function to build a network, and check the shape of the logits."""
    with NETWORKS.explained(name):
        network = build(num_classes, input_size)
    NETWORKS.require(name, network, nn.Module)
    assert isinstance(network, nn.Module)
    with NETWORKS.explained(name):
        shape = output_shape(network, input_size)
    if shape != (2, num_classes):
        raise UserError(
            f"model.network is {name}, which gives shape {shape} for 2 images of {input_size} px: expected logits "
            f"[2, {num_classes}], one for each class"
        )
    return network


def computes_channels_last(config: ModelConfig) -> bool:
    """Whether a CPU computes the network faster in channels-last memory format."""
    return _family(config).channels_last


def _preset(config: ModelConfig, family: Family) -> str | None:
    if config.preset is None:
        return next(iter(family.presets), None)
    if config.preset not in family.presets:
        known = f"one of {', '.join(family.presets)}" if family.presets else "null"
        raise UserError(f"model.preset is {config.preset}, which {config.network} does not have: make it {known}")
    return config.preset


def _options(config: ModelConfig, family: Family) -> Options:
    """Return the fields that differ from their defaults. A default keeps the preset's value."""
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
