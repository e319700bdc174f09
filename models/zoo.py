import logging
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from models import alexnet, lenet
from models.config import ModelConfig

Options = Mapping[str, Any]

UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile)
"""What torch raises for files of another kind, for cut ones, and for pickles that hold more than tensors."""

_log = logging.getLogger("convoy")


def build_network(config: ModelConfig, num_classes: int, input_size: int) -> nn.Module:
    """Build the network that the config names, on the CPU: images [N, 3, input_size, input_size] to logits.

    With `config.weights`, layers whose shapes are those of the file start from it; one line in the log says which.

    Raises:
        UserError: a preset, option or input size that the network does not have, or weights that cannot be used.

    """
    family = _FAMILIES[config.network]
    network = family.build(num_classes, input_size, _preset(config, family), _options(config, family))
    if config.weights is not None:
        _log.info(load_weights(network, config.weights))
    return network


def load_weights(network: nn.Module, path: Path) -> str:
    """Start the layers of `network` from a state_dict file, plain or under the key `state_dict` of a checkpoint.

    A layer is taken whole or not at all: where any of its tensors is missing or has another shape, it stays as it is.

    Returns:
        One line that says how much was loaded and which layers start anew.

    Raises:
        UserError: the file is missing or is no state_dict, or no layer fits.

    """
    present = network.state_dict()
    found = _without_owner(_read_state_dict(path), present.keys())
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in present.items():
        layers.setdefault(key.rpartition(".")[0], {})[key] = tensor
    fitting = {name for name, tensors in layers.items() if all(_fits(found.get(key), tensors[key]) for key in tensors)}
    if not fitting:
        raise UserError(
            f"model.weights is {path}, of which no layer fits this network: "
            "give a file of the same model.network, model.preset and options, or leave it null"
        )
    network.load_state_dict({key: found[key] for name in fitting for key in layers[name]}, strict=False)
    anew = [name for name in layers if name not in fitting]
    return f"{len(fitting)} of {len(layers)} layers start from {path}" + (f"; anew: {_some(anew)}" if anew else "")


@dataclass(frozen=True)
class _Family:
    """Networks of one name, and what of ModelConfig they have."""

    build: Callable[[int, int, str | None, Options], nn.Module]
    """from num_classes, input_size, preset and the options that are set"""
    presets: tuple[str, ...] = ()
    """the default first"""
    options: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """fields and their choices; no choices: whatever ModelConfig allows"""


def _alexnet(num_classes: int, input_size: int, preset: str | None, options: Options) -> nn.Module:
    spec = replace(alexnet.PRESETS[str(preset)], **options)
    return alexnet.AlexNet(spec, num_classes=num_classes, input_size=input_size)


def _lenet5(num_classes: int, input_size: int, preset: str | None, options: Options) -> nn.Module:
    spec = replace(lenet.PRESETS[str(preset)], **options)
    return lenet.LeNet5(spec, num_classes=num_classes, input_size=input_size)


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
    ),
    "lenet5": _Family(
        _lenet5,
        presets=("relu", "1998"),
        options={"activation": (), "pooling": ("plain", "average")},
    ),
    "mobilenet_v3_small": _Family(partial(_torchvision, "mobilenet_v3_small")),
    "mobilenet_v3_large": _Family(partial(_torchvision, "mobilenet_v3_large")),
    "efficientnet_b0": _Family(partial(_torchvision, "efficientnet_b0")),
}


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


def _fits(found: Tensor | None, tensor: Tensor) -> bool:
    return found is not None and found.shape == tensor.shape


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise UserError(f"model.weights is {path}, which is no file: give the path of a state_dict, or leave it null")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(
            f"model.weights is {path}, which torch cannot read as tensors ({type(error).__name__}): "
            "save it again with torch.save(network.state_dict(), path)"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    named = content.items() if isinstance(content, dict) else ()
    return {str(key): value for key, value in named if isinstance(value, Tensor)}


def _without_owner(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> Mapping[str, Tensor]:
    """Checkpoints of a module around the network, as Lightning and DDP write them, put its name before every key."""
    owners = dict.fromkeys(["", *(key.partition(".")[0] + "." for key in tensors)])
    choices = [{key.removeprefix(owner): tensors[key] for key in tensors if key.startswith(owner)} for owner in owners]
    return max(choices, key=lambda choice: len(choice.keys() & set(wanted)))
