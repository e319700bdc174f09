"""Initial weights of a network: published weights, by the network's name, or the weights in a file."""

import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.parse import urlsplit

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from core.errors import UserError
from core.files import file_sha256
from data.images.decode import Normalization

UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile)
"""torch's errors for files of another kind, truncated files, and pickles that hold more than tensors."""
MIN_FITTING = 0.5
"""Minimum share of a network's layers in a file. A file with fewer layers belongs to another network."""
NORMALIZATION = "normalization"
"""Key of the pixel normalization in our checkpoints."""

IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet, as in most networks of torchvision."""
HALVES = Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CONVERTED = ("googlenet", "inception_v3")
"""Networks of torchvision that take pixels in `IMAGENET`, and convert them to `HALVES` themselves."""


class Weights(NamedTuple):
    """Tensors by their names in the network, and their source."""

    tensors: Mapping[str, Tensor]
    source: str
    normalization: Normalization | None = None
    """normalization of the training pixels; None if the file does not have it"""


def published_weights(network: str) -> Weights:
    """Return torchvision's ImageNet weights of a network. They are downloaded once for all projects of the user.

    Raises:
        UserError: no weights are published, the file cannot be downloaded, or it was altered.

    """
    import torchvision  # here, because it takes 8 s and the other networks do without

    try:
        published = torchvision.models.get_model_weights(network).DEFAULT
    except ValueError:
        raise UserError(
            f"model.weights is imagenet, and none are published for {network}: leave model.weights null, or choose "
            "another model.network, such as efficientnet_lite0"
        ) from None
    fetch(published.url)
    model = torchvision.models.get_model(network, weights=published)
    preset = published.transforms()
    said = Normalization.model_validate({"mean": preset.mean, "std": preset.std})
    return Weights(model.state_dict(), f"ImageNet's weights of {network}", HALVES if network in CONVERTED else said)


def fetch(url: str) -> Path:
    """Download a file into torch's cache. Like torch's files, it must be named after the start of its SHA-256.

    Raises:
        UserError: there is no network, or the cached file is truncated or altered. The message says which file to put
            where.

    """
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(f"{url} cannot be downloaded ({reason}): put that file at {path}", exit_code=1) from None
    if not file_sha256(path).startswith(path.stem.rpartition("-")[2]):
        raise UserError(f"{path} was cut or altered: remove it, and the same command downloads it again", exit_code=1)
    return path


def read_weights(path: Path) -> Weights:
    """Read a state_dict file, plain or under the key `state_dict` of a checkpoint.

    Raises:
        UserError: the file is missing or is no state_dict.

    """
    if not path.is_file():
        raise UserError(f"model.weights is {path}, which is no file: give the path of a state_dict, or leave it null")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(
            f"model.weights is {path}, which torch cannot read as tensors ({type(error).__name__}): "
            "save it again with torch.save(network.state_dict(), path)"
        ) from error
    content = content if isinstance(content, dict) else {}
    try:
        normalization = Normalization.model_validate(content.get(NORMALIZATION))
    except ValidationError:
        normalization = None
    if isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    return Weights(tensors, str(path), normalization)


def load_weights(network: nn.Module, weights: Weights) -> str:
    """Load weights into the layers of `network`.

    A layer is loaded as a whole. If any of its tensors is missing or has another shape, the layer does not change.

    Returns:
        One line that says how much was loaded, and which layers were not.

    Raises:
        UserError: fewer than half of the layers fit.

    """
    present = network.state_dict()
    found = _without_owner(weights.tensors, present.keys())
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in present.items():
        layers.setdefault(key.rpartition(".")[0], {})[key] = tensor
    fitting = {name for name, tensors in layers.items() if all(_fits(found.get(key), tensors[key]) for key in tensors)}
    if len(fitting) < MIN_FITTING * len(layers):
        raise UserError(
            f"model.weights: of {weights.source}, {len(fitting)} of {len(layers)} layers fit this network: "
            "use weights of the same model.network, model.preset and options, or leave model.weights null"
        )
    network.load_state_dict({key: found[key] for name in fitting for key in layers[name]}, strict=False)
    anew = [name for name in layers if name not in fitting]
    return f"{len(fitting)} of {len(layers)} layers start from {weights.source}" + (
        f"; anew: {_some(anew)}" if anew else ""
    )


def _fits(found: Tensor | None, tensor: Tensor) -> bool:
    return found is not None and found.shape == tensor.shape


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _without_owner(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> Mapping[str, Tensor]:
    """Remove the prefix that wrapper modules, such as Lightning's and DDP's, put before every key."""
    owners = dict.fromkeys(["", *(key.partition(".")[0] + "." for key in tensors)])
    choices = [{key.removeprefix(owner): tensors[key] for key in tensors if key.startswith(owner)} for owner in owners]
    return max(choices, key=lambda choice: len(choice.keys() & set(wanted)))
