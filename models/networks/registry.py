import logging
from importlib import import_module

from torch import nn

from core.errors import UserError
from data.images.decode import Normalization
from models.config import ModelConfig, module_of
from models.networks.family import Family, Options
from models.networks.weights import load_weights, read_weights

_log = logging.getLogger("convoy")


def build_network(config: ModelConfig, num_classes: int, input_size: int) -> nn.Module:
    """Build the network that the config names, on the CPU: images [N, 3, input_size, input_size] to logits.

    Its weights are drawn anew, whatever `config.weights` says.

    Raises:
        UserError: a preset, option or input size that the network does not have.

    """
    family = _family(config)
    return family.build(config.network, num_classes, input_size, _preset(config, family), _options(config, family))


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
    family = _family(config)
    weights = family.published(config.network) if config.weights == "imagenet" else read_weights(config.weights)
    _log.info("train: %s", load_weights(network, weights))
    return weights.normalization or family.normalization


def _family(config: ModelConfig) -> Family:
    """Import the one module that the network is in."""
    family: Family = import_module(module_of(config.network)).FAMILY
    return family


def computes_channels_last(config: ModelConfig) -> bool:
    """Whether a CPU computes the network faster with the channels of a pixel side by side in memory."""
    return _family(config).channels_last


def _preset(config: ModelConfig, family: Family) -> str | None:
    if config.preset is None:
        return next(iter(family.presets), None)
    if config.preset not in family.presets:
        known = f"one of {', '.join(family.presets)}" if family.presets else "null"
        raise UserError(f"model.preset is {config.preset}, which {config.network} does not have: make it {known}")
    return config.preset


def _options(config: ModelConfig, family: Family) -> Options:
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
