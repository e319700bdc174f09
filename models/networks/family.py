from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from data.images.decode import Normalization
from models.networks.weights import Weights, published_weights

Options = Mapping[str, Any]
"""Fields of ModelConfig that differ from their defaults."""


@dataclass(frozen=True)
class Family:
    """Networks of one module, and the parameters that they support. `models.config.NETWORKS` says where each is."""

    build: Callable[[str, int, int, str | None, Options], nn.Module]
    """called with the network's name, num_classes, input_size, preset, and the options that are set"""
    presets: tuple[str, ...] = ()
    """the first one is the default"""
    options: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """supported fields and their values; no values: all values of ModelConfig"""
    published: Callable[[str], Weights] = published_weights
    """ImageNet weights, by the network's name"""
    normalization: Normalization | None = None
    """pixel normalization of the published weights"""
    channels_last: bool = True
    """whether a CPU computes the networks faster in channels-last memory format"""
