"""Published data sets, downloaded and checked by torchvision. No other file in data/ imports torchvision."""

import io
import socket
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from core.files import is_disk_full
from data.sources.base import Listing, SourceImage
from data.splits import Split

DOWNLOADS = Path("outputs/downloads")
LICENSED = "imagenet"
"""A download needs an account. torchvision only unpacks the archives."""

FLOWERS = (
    "pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea", "english marigold", "tiger lily",
    "moon orchid", "bird of paradise", "monkshood", "globe thistle", "snapdragon", "colt's foot", "king protea",
    "spear thistle", "yellow iris", "globe-flower", "purple coneflower", "peruvian lily", "balloon flower",
    "giant white arum lily", "fire lily", "pincushion flower", "fritillary", "red ginger", "grape hyacinth",
    "corn poppy", "prince of wales feathers", "stemless gentian", "artichoke", "sweet william", "carnation",
    "garden phlox", "love in the mist", "mexican aster", "alpine sea holly", "ruby-lipped cattleya", "cape flower",
    "great masterwort", "siam tulip", "lenten rose", "barbeton daisy", "daffodil", "sword lily", "poinsettia",
    "bolero deep blue", "wallflower", "marigold", "buttercup", "oxeye daisy", "common dandelion", "petunia",
    "wild pansy", "primula", "sunflower", "pelargonium", "bishop of llandaff", "gaura", "geranium", "orange dahlia",
    "pink-yellow dahlia", "cautleya spicata", "japanese anemone", "black-eyed susan", "silverbush",
    "californian poppy", "osteospermum", "spring crocus", "bearded iris", "windflower", "tree poppy", "gazania",
    "azalea", "water lily", "rose", "thorn apple", "morning glory", "passion flower", "lotus", "toad lily",
    "anthurium", "frangipani", "clematis", "hibiscus", "columbine", "desert-rose", "tree mallow", "magnolia",
    "cyclamen", "watercress", "canna lily", "hippeastrum", "bee balm", "ball moss", "foxglove", "bougainvillea",
    "camellia", "mallow", "mexican petunia", "bromelia", "blanket flower", "trumpet creeper", "blackberry lily",
)  # fmt: skip
"""Names of the 102 flowers, from the data set's page. The files have only numbers."""


@dataclass(frozen=True)
class Published:
    """Published data set."""

    class_name: str
    """class in torchvision.datasets"""
    splits: dict[str, tuple[Split, int]]
    """our split and the number of images, by torchvision's split. The split of published results is our test split, so
    that figures compare. If no split is left for validation, validation images are drawn from training."""
    files: str
    """instructions for a machine without a network; {root} is the folder"""
    options: dict[str, str | bool]


PUBLISHED = {
    "cifar10": Published(
        "CIFAR10",
        {"train": ("train", 50_000), "test": ("test", 10_000)},
        "put https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz into {root}",
        {},
    ),
    "fashion_mnist": Published(
        "FashionMNIST",
        {"train": ("train", 60_000), "test": ("test", 10_000)},
        "put the four *-ubyte.gz of https://github.com/zalandoresearch/fashion-mnist into {root}/FashionMNIST/raw",
        {},
    ),
    "imagenette": Published(
        "Imagenette",
        {"train": ("train", 9_469), "val": ("test", 3_925)},
        "put https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz into {root}",
        {"size": "320px"},
    ),
    "flowers102": Published(
        "Flowers102",
        {"train": ("train", 1_020), "val": ("val", 1_020), "test": ("test", 6_149)},
        "put 102flowers.tgz, imagelabels.mat and setid.mat of https://www.robots.ox.ac.uk/~vgg/data/flowers/102 into "
        "{root}/flowers-102",
        {},
    ),
    "food101": Published(
        "Food101",
        {"train": ("train", 75_750), "test": ("test", 25_250)},
        "put http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz into {root}",
        {},
    ),
    "imagenet": Published(
        "ImageNet",
        {"train": ("train", 1_281_167), "val": ("test", 50_000)},
        "put ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar of "
        "https://image-net.org/download (an account is needed) into {root}, or, where train and val are unpacked "
        "already, set data.source=folder",
        {},
    ),
}


class TorchvisionSource:
    """Published data set in `root`, downloaded if missing."""

    def __init__(self, name: str, root: Path | None) -> None:
        """Set the data set and its folder. Nothing is opened or downloaded yet."""
        self._name, self._set = name, PUBLISHED[name]
        self._root = root or DOWNLOADS / name

    def fingerprint(self) -> str:
        """Return a constant: published data never changes. Listing compares checksums and numbers of images."""
        return f"{self._name} {self._set.options or ''}".strip()

    def list_images(self) -> Listing:
        """List the images of all splits, ordered by origin. Downloads missing files.

        Raises:
            UserError: there is no network, or a file is missing or incomplete. The message says what to put where.

        """
        images: list[SourceImage] = []
        for part, (split, num_images) in self._set.splits.items():
            dataset = self._open(part)
            if len(dataset) != num_images:
                raise UserError(
                    f"data.source={self._name}: {self._root} holds {len(dataset):,} images of {num_images:,} "
                    f"({part}): remove what was unpacked there and run the same command again",
                    exit_code=1,
                )
            listed = self._from_arrays if hasattr(dataset, "data") else self._from_files
            images += listed(dataset, part, split)
        images.sort(key=lambda image: image.origin)
        return Listing(images)

    def _open(self, part: str) -> Any:
        """Open the local files. Only if this fails, use the network."""
        try:
            return self._dataset(part, download=False)
        except RuntimeError:
            pass
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with _patience():
                return self._dataset(part, download=True)
        except (RuntimeError, OSError, HTTPException) as error:
            if is_disk_full(error):
                raise
            files = self._set.files.format(root=self._root)
            otherwise = "" if self._name == LICENSED else ", or run this where there is a network"
            raise UserError(
                f"data.source={self._name} is not in {self._root} and cannot be downloaded ({_reason(error)}): "
                f"{files}{otherwise}",
                exit_code=1,
            ) from None

    def _dataset(self, part: str, *, download: bool) -> Any:
        from torchvision import datasets

        options: dict[str, Any] = {**self._set.options}
        if self._name in ("cifar10", "fashion_mnist"):
            options["train"] = part == "train"
        else:
            options |= {"split": part, "loader": Path}  # do not decode the files
        if self._name != LICENSED:
            options["download"] = download
        with warnings.catch_warnings(action="ignore", category=np.exceptions.VisibleDeprecationWarning):
            # CIFAR's files were pickled by NumPy 1.
            return getattr(datasets, self._set.class_name)(str(self._root), **options)

    def _from_arrays(self, dataset: Any, part: str, split: Split) -> Iterator[SourceImage]:
        """List images that are published as pixels. They become PNG files when they are read."""
        pixels, names = np.asarray(dataset.data), _class_names(dataset)
        for index, target in enumerate(np.asarray(dataset.targets).tolist()):
            origin = f"{part}/{index:05d}.png"
            content = partial(_png, pixels, index)
            yield SourceImage(origin, names[target], split, content, pixels[index].nbytes, f"{self._name} {origin}")

    def _from_files(self, dataset: Any, _: str, split: Split) -> Iterator[SourceImage]:
        names = _class_names(dataset)
        for index in range(len(dataset)):
            path, target = dataset[index]
            try:
                status = path.stat()
            except FileNotFoundError:
                raise UserError(
                    f"data.source={self._name}: {path} is missing: remove what was unpacked in {self._root} and run "
                    "the same command again",
                    exit_code=1,
                ) from None
            origin = path.relative_to(self._root).as_posix()
            state = f"{path} {status.st_size} {status.st_mtime_ns}"
            yield SourceImage(origin, names[target], split, str(path), status.st_size, state)


@contextmanager
def _patience() -> Iterator[None]:
    """Set a timeout of a minute. torchvision sets none, and some networks drop forbidden packets silently."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _class_names(dataset: Any) -> list[str]:
    """Return the first name of each class. If two classes share a name (the bird and the machine crane), add the id."""
    if not hasattr(dataset, "classes"):
        return list(FLOWERS)
    names = [name if isinstance(name, str) else name[0] for name in dataset.classes]
    shared = {name for name, count in Counter(names).items() if count > 1}
    ids = getattr(dataset, "wnids", names)
    return [f"{name} ({wnid})" if name in shared else name for name, wnid in zip(names, ids, strict=True)]


def _png(pixels: npt.NDArray[np.uint8], index: int) -> bytes:
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(pixels[index]).save(png, "PNG")
    return png.getvalue()


def _reason(error: Exception) -> str:
    """Return the innermost cause, which `urlopen` wraps, in one line."""
    return " ".join(str(getattr(error, "reason", None) or error).split())[:200]
