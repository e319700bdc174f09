from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Switch = Literal[True, False, "auto"]


def _expand(value: object) -> object:
    """`~` in a path means the home directory here as in a shell; an empty path is none."""
    if value == "":
        return None
    return Path(value).expanduser() if isinstance(value, str) else value


OptionalPath = Annotated[Path | None, BeforeValidator(_expand)]


class Section(BaseModel):
    """One section of params.yaml: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataConfig(Section):
    """Where the labelled images come from and how they become arrays."""

    source: Literal["digits", "folder"] = "digits"
    """digits: 1,797 handwritten digits that scikit-learn carries; folder: your own images"""
    path: OptionalPath = None
    """the folder, with <class>/*.jpg or train|val|test/<class>/*.jpg in it; relative to the workspace"""
    size: int = Field(32, ge=8, le=4096)
    """pixels: the shorter side is resized to this, then the centre square is kept"""
    val_fraction: float = Field(0.1, gt=0, lt=0.5)
    """share of the images held out to choose the best epoch; ignored where the folder has a val split"""
    test_fraction: float = Field(0.2, gt=0, lt=0.5)
    """share of the images held out to measure the result; ignored where the folder has a test split"""
    split_seed: int = Field(0, ge=0)
    """another number gives another split"""
    max_file_mb: float = Field(64, gt=0, le=1024)
    """larger files are rejected without being read"""
    max_pixels: int = Field(50_000_000, gt=0, le=178_956_970)  # more, Pillow itself refuses
    """images with more pixels are rejected before they are decoded, here and by the endpoint"""


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
