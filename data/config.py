import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from core.extensions import ExtensionPoint
from core.sections import OptionalPath, Section, Switch

IN_NO_KEY = "Values count by themselves."


NEED_PATH = ("folder", "parquet")
"""Sources that are nothing without `data.path`."""
OF_TORCHVISION = ("cifar10", "fashion_mnist", "imagenette", "flowers102", "food101", "imagenet")
SOURCES = ExtensionPoint(
    "data.source",
    "convoy.sources",
    {
        "digits": "data.sources.digits:DigitsSource",
        "folder": "data.sources.folder:FolderSource",
        "parquet": "data.sources.parquet:ParquetSource",
        **dict.fromkeys(OF_TORCHVISION, "data.sources.torchvision_sets:TorchvisionSource"),
    },
)
"""Sources, each by its class. One of the user's is called with `data.path`, a Path or None."""

_ADDRESS = re.compile(r"(tcp|tls)://([\w.-]+|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})")


def _check_address(address: str | None) -> str | None:
    """Accept what Dask's scheduler prints when it starts; an empty address is none."""
    if not address:
        return None
    if (parts := _ADDRESS.fullmatch(address)) and 0 < int(parts["port"]) < 2**16:
        return address
    raise ValueError("expected tcp://HOST:PORT or tls://HOST:PORT, the address that `dask scheduler` prints")


def _check_transform(item: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    if len(item) != 1:
        raise ValueError("expected one name with its arguments, such as {RandomGrayscale: {p: 0.1}}")
    return item


Transform = Annotated[dict[str, dict[str, Any]], AfterValidator(_check_transform)]
OptionalAddress = Annotated[str | None, AfterValidator(_check_address)]


class DataConfig(Section):
    """Where the labelled images come from and how they become arrays."""

    source: Annotated[str, AfterValidator(SOURCES.accept)] = "digits"
    """digits, folder, parquet, cifar10, fashion_mnist, imagenette, flowers102, food101, imagenet, or my_file:Class"""
    path: OptionalPath = None
    """folder with one folder for each class, or with train, val and test above them; or of parquet files; null: none"""
    size: int = Field(32, ge=8, le=4096)
    """pixels: the shorter side is resized to this, then the centre square is kept"""
    val_fraction: float = Field(0.1, gt=0, lt=0.5)
    """share of the images held out to choose the best epoch; ignored where the folder has a val split"""
    test_fraction: float = Field(0.2, gt=0, lt=0.5)
    """share of the images held out to measure the result; ignored where the folder has a test split"""
    group_near_duplicates: bool = True
    """put images that look alike into the same split; splits that you have made stay as they are"""
    split_seed: int = Field(0, ge=0)
    """another number gives another split"""
    max_file_mb: float = Field(64, gt=0, le=1024)
    """larger files are rejected without being read"""
    max_pixels: int = Field(50_000_000, gt=0, le=178_956_970)  # more, Pillow itself refuses
    """images with more pixels are rejected before they are decoded, here and by the endpoint"""
    max_decoding_seconds: float = Field(30, gt=0)
    """images that may take a core longer are rejected before they are decoded; the endpoint has limits of its own"""
    on_conflict: Literal["fail", "drop"] = "fail"
    """an image under two labels, or in two splits: fail, or drop (all copies of the one, the other from training)"""
    min_side: int = Field(8, ge=1)
    """pixels: images with a shorter side are reported as too small"""
    max_aspect_ratio: float = Field(4, ge=1)
    """images with a longer side of more than so many shorter ones are reported: only the centre square is kept"""
    max_imbalance: float = Field(10, ge=1)
    """reported where the largest class has more than so many times the training images of the smallest"""
    scheduler: OptionalAddress = None
    """tcp://HOST:PORT of a Dask scheduler whose workers prepare the images; null: processes of this machine"""


class AugmentationConfig(Section):
    """What is done to training images, drawn anew every epoch; validation and test images are never touched."""

    crop: bool = True
    """random crop of model.input_size, after padding where the stored images are no larger"""
    padding: int = Field(2, ge=0, le=64)
    """pixels of black on every side before the crop, where the stored images are no larger than the crop"""
    flip: Switch = "auto"
    """mirror half of the images; auto: where a mirrored image keeps its label (photographs yes, digits no)"""
    pca_color: float = Field(0.1, ge=0, le=1)
    """deviation of the AlexNet paper's colour shift along the principal axes of the training pixels; 0: none"""
    resized_crop: float | None = Field(None, gt=0, le=1)
    """least share of the stored image's area kept by a crop that is resized, in the place of `crop`; null: off"""
    brightness: float = Field(0, ge=0, le=1)
    """b: each image is multiplied by a number between 1 - b and 1 + b; 0: none"""
    contrast: float = Field(0, ge=0, le=1)
    """c: each image's distance from its mean grey is multiplied by a number between 1 - c and 1 + c; 0: none"""
    erasing: float = Field(0, ge=0, le=1)
    """share of the images in which a rectangle is filled with the mean colour; 0: none"""
    mixup: float = Field(0, ge=0)
    """alpha: two images and their labels are blended, the shares drawn from Beta(alpha, alpha); 0: off"""
    cutmix: float = Field(0, ge=0)
    """alpha: as mixup, with a square of the other image in place of a blend; both on: one is drawn a step; 0: off"""
    extra: tuple[Transform, ...] = ()
    """transforms of torchvision.transforms.v2 after all of these, such as [{RandomGrayscale: {p: 0.1}}]"""
