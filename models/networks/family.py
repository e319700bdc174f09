from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from data.images.decode import Normalization
from models.networks.weights import Weights, published_weights

Options = Mapping[str, Any]
"""Fields of ModelConfig that are set to other than their default."""


@dataclass(frozen=True)
class Family:
    """Networks of one module, and what of ModelConfig they have. `models.config.NETWORKS` says where each is."""

    build: Callable[[str, int, int, str | None, Options], nn.Module]
    """from the network's name, num_classes, input_size, preset and the options that are set"""
    presets: tuple[str, ...] = ()
    """the default first"""
    options: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """fields and their choices; no choices: whatever ModelConfig allows"""
    published: Callable[[str], Weights] = published_weights
    """weights that were trained on ImageNet, by the network's name"""
    normalization: Normalization | None = None
    """of the pixels that published weights were trained on"""
    channels_last: bool = True
    """whether a CPU computes it faster with the channels of a pixel side by side in memory"""
