import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from core.extensions import ExtensionPoint
from core.sections import OptionalPath, Section, Switch

IN_NO_KEY = "Values count by themselves."


NEED_PATH = ("folder", "parquet")
"""Sources that need `data.path`."""
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
"""Class of each source. A user's source is called with `data.path`, a Path or None."""

_ADDRESS = re.compile(r"(tcp|tls)://([\w.-]+|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})")


def _check_address(address: str | None) -> str | None:
    """Accept the address that Dask's scheduler prints. An empty address becomes None."""
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
    """Source of the labelled images, and their conversion to arrays."""

    source: Annotated[str, AfterValidator(SOURCES.accept)] = "digits"
    """digits, folder, parquet, cifar10, fashion_mnist, imagenette, flowers102, food101, imagenet, or my_file:Class"""
    path: OptionalPath = None
    """folder with one folder per class, also below train, val and test; or folder of parquet files; null: none"""
    size: int = Field(32, ge=8, le=4096)
    """pixels: the shorter side is resized to this size, and the centre square is kept"""
    val_fraction: float = Field(0.1, gt=0, lt=0.5)
    """share of the images for choosing the best epoch; ignored if the folder has a val split"""
    test_fraction: float = Field(0.2, gt=0, lt=0.5)
    """share of the images for measuring the result; ignored if the folder has a test split"""
    group_near_duplicates: bool = True
    """put images that look alike into the same split; your own splits do not change"""
    split_seed: int = Field(0, ge=0)
    """another number gives another split"""
    max_file_mb: float = Field(64, gt=0, le=1024)
    """larger files are rejected without being read"""
    max_pixels: int = Field(50_000_000, gt=0, le=178_956_970)  # Pillow's own limit
    """images with more pixels are rejected before decoding, in preparation and by the endpoint"""
    max_decoding_seconds: float = Field(30, gt=0)
    """images that may take longer on one core are rejected before decoding; the endpoint has its own limits"""
    on_conflict: Literal["fail", "drop"] = "fail"
    """an image with two labels, or in two splits: fail, or drop (all copies, or the copies in all splits but one)"""
    min_side: int = Field(8, ge=1)
    """pixels: images whose shorter side is smaller are reported as too small"""
    max_aspect_ratio: float = Field(4, ge=1)
    """images with a larger ratio of longer to shorter side are reported, because only the centre square is kept"""
    max_imbalance: float = Field(10, ge=1)
    """a larger ratio between the training images of the largest and the smallest class is reported"""
    scheduler: OptionalAddress = None
    """tcp://HOST:PORT of a Dask scheduler whose workers prepare the images; null: processes on this machine"""


class AugmentationConfig(Section):
    """Random changes to training images, drawn anew every epoch. Validation and test images never change."""

    crop: bool = True
    """random crop of model.input_size, after padding if the stored images are no larger"""
    padding: int = Field(2, ge=0, le=64)
    """black pixels on every side before the crop, if the stored images are no larger than the crop"""
    flip: Switch = "auto"
    """mirror half of the images; auto: if mirrored images keep their labels (photographs yes, digits no)"""
    pca_color: float = Field(0.1, ge=0, le=1)
    """deviation of the AlexNet paper's colour shift along the principal axes of the training pixels; 0: none"""
    resized_crop: float | None = Field(None, gt=0, le=1)
    """random resized crop instead of `crop`: smallest crop area, as a fraction of the image; null disables it"""
    brightness: float = Field(0, ge=0, le=1)
    """b: each image is multiplied by a random factor between 1 - b and 1 + b; 0: none"""
    contrast: float = Field(0, ge=0, le=1)
    """c: the distance from an image's mean grey is multiplied by a random factor between 1 - c and 1 + c; 0: none"""
    erasing: float = Field(0, ge=0, le=1)
    """share of the images in which a rectangle is filled with the mean colour; 0: none"""
    mixup: float = Field(0, ge=0)
    """alpha: two images and their labels are blended, with shares from Beta(alpha, alpha); 0: off"""
    cutmix: float = Field(0, ge=0)
    """alpha: like mixup, with a square of the other image instead of a blend; both on: each step draws one; 0: off"""
    extra: tuple[Transform, ...] = ()
    """transforms of torchvision.transforms.v2 after all others, such as [{RandomGrayscale: {p: 0.1}}]"""
