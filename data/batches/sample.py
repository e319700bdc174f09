from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from core.errors import UserError
from data.batches.shards import PreparedImages
from data.images.decode import Pixels
from data.ingest.raw_shards import read_columns
from data.manifest import read_data_manifest
from data.preparing.stage import INDEX_FILE


@dataclass(frozen=True)
class Sample:
    """Test image: the original file and the prepared pixels."""

    origin: str
    image: bytes
    prepared: Pixels
    """uint8 [crop, crop, 3]"""


def first_test_image(raw: Path, prepared: Path, crop: int) -> Sample:
    """Return the first test image.

    Raises:
        UserError: `raw` does not hold the original any more.

    """
    index = next(row for row in pq.read_table(prepared / INDEX_FILE).to_pylist() if row["split"] == "test")
    (pixels,) = PreparedImages(prepared, read_data_manifest(prepared), "test").gather(np.array([0]))
    start = (pixels.shape[0] - crop) // 2
    kept = pixels[start : start + crop, start : start + crop]
    return Sample(index["origin"], _original(raw, index["sha256"]), np.ascontiguousarray(kept))


def _original(raw: Path, sha256: str) -> bytes:
    """Find the image by its digest. The images of only one shard are read."""
    for shard in sorted(raw.glob("*.parquet")):
        digests = read_columns(shard, ["sha256"])["sha256"].to_pylist()
        if sha256 in digests:
            image: bytes = read_columns(shard, ["image"])["image"][digests.index(sha256)].as_py()
            return image
    raise UserError(f"{raw} does not hold the images that were prepared: ingest them again with `convoy data ingest`")
