from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import UserError
from data.images.decode import Normalization
from data.splits import Split

MANIFEST_FILE = "manifest.json"

Triple = tuple[float, float, float]


class Model(BaseModel):
    """Frozen record in a JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RejectedImage(Model):
    """Image that cannot be used, and the reason."""

    path: str
    reason: str


class Shard(Model):
    """File of prepared images, uint8 [num_images, size, size, 3]."""

    split: Split
    name: str
    num_images: int
    checksum: str
    """checksum of the file, by `core.checksum`"""


class ColorStatistics(Model):
    """Statistics of the training pixels, scaled to 0..1, for normalization and the paper's colour augmentation."""

    mean: Triple
    std: Triple
    eigenvalues: Triple
    """of the 3x3 covariance of red, green and blue, ascending"""
    eigenvectors: tuple[Triple, Triple, Triple]
    """in columns, in the order of the eigenvalues"""

    @property
    def normalization(self) -> Normalization:
        """Normalization to mean 0 and deviation 1 over the training pixels."""
        return Normalization(mean=self.mean, std=self.std)


class DataManifest(Model):
    """Contents of `data/prepared`. The manifest is written last, so a folder with a manifest is complete."""

    source: str
    mirror_keeps_label: bool
    size: int
    max_pixels: int
    classes: tuple[str, ...]
    splits: dict[Split, dict[str, int]]
    """number of images of each class in each split"""
    color: ColorStatistics
    rejected: tuple[RejectedImage, ...]
    shards: tuple[Shard, ...]

    @property
    def num_images(self) -> int:
        """Number of usable images in all splits."""
        return sum(sum(counts.values()) for counts in self.splits.values())

    def num_in(self, split: Split) -> int:
        """Number of usable images in one split."""
        return sum(self.splits[split].values())


def mirror_keeps_label(source: str) -> bool:
    """Whether a mirrored image belongs to the same class.

    True for photographs and the clothes of Fashion-MNIST, false for digits. Folders and tables of users are assumed to
    hold photographs. `augmentation.flip=false` corrects that.
    """
    return source != "digits"


def labels_file(split: Split) -> str:
    """Return the name of the file with a split's labels, int64 [num_images], in the order of its shards."""
    return f"{split}-labels.npy"


def read_data_manifest(prepared: Path) -> DataManifest:
    """Read the manifest of a prepared folder.

    Raises:
        UserError: the manifest is missing, because the folder is missing or incomplete; or it has another version.

    """
    path = prepared / MANIFEST_FILE
    try:
        return DataManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: prepare the images with `convoy data prepare`") from None
    except ValidationError:
        raise UserError(
            f"{path} is damaged or of another version of Convoy: prepare the images again with `convoy data prepare`"
        ) from None
