"""Images of a split, decoded from their original bytes with another preprocessing than in preparation."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from core.errors import UserError
from core.machine import num_cores
from data.batches.shards import Indices
from data.images.decode import DecodeError, Pixels, Preprocessing, decode
from data.ingest.raw_shards import open_shard, read_columns
from data.manifest import labels_file
from data.preparing.stage import INDEX_FILE
from data.splits import Split

Place = tuple[Path, int, int]
"""Raw shard, row group in the shard, row in the group."""


class OriginalImages:
    """Split of a prepared data set, with the calling convention of `PreparedImages`.

    Images are found by the SHA-256 of their bytes, and decoded on demand, on all cores. Only the row groups of one call
    are in memory.
    """

    def __init__(self, raw: Path, prepared: Path, split: Split, spec: Preprocessing) -> None:
        """Find the images of `split` in `raw`, to be decoded by `spec`. No image is read yet.

        Raises:
            UserError: `raw` does not hold an image that was prepared.

        """
        self._spec = spec
        self._places = _places(raw, prepared, split)
        self.labels: Indices = np.load(prepared / labels_file(split))

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: Indices) -> Pixels:
        """Decode images, in the order of `indices`, to one array, uint8 [N, crop, crop, 3].

        Raises:
            UserError: an image cannot be decoded, although it was prepared.

        """
        groups = _by_group([self._places[index] for index in indices.tolist()])
        pixels = np.empty((len(indices), self._spec.crop, self._spec.crop, 3), dtype=np.uint8)

        def fill(position: int, image: bytes) -> None:
            pixels[position] = decode(image, self._spec)

        with ThreadPoolExecutor(num_cores()) as pool:
            started = [
                pool.submit(fill, position, image)
                for place, rows in groups.items()
                for position, image in _read(*place, rows)
            ]
            try:
                for one in started:
                    one.result()
            except DecodeError as error:
                raise UserError(f"a test image cannot be decoded any more: {error}") from None
        return pixels


def read_originals(raw: Path, prepared: Path, split: Split) -> Iterator[tuple[int, bytes]]:
    """Yield index and file content of the images of `split`, one row group at a time.

    Raises:
        UserError: `raw` does not hold an image that was prepared.

    """
    for place, rows in _by_group(_places(raw, prepared, split)).items():
        yield from _read(*place, rows)


def _places(raw: Path, prepared: Path, split: Split) -> list[Place]:
    """Return the places of the images of a split, in the order of the split."""
    index = pq.read_table(prepared / INDEX_FILE, columns=["split", "sha256"]).to_pydict()
    wanted = [sha256 for sha256, its in zip(index["sha256"], index["split"], strict=True) if its == split]
    places = _find(raw, set(wanted))
    if missing := len(set(wanted) - places.keys()):
        raise UserError(
            f"{raw} does not hold {missing:,} of the images that were prepared: "
            "prepare them again with `convoy data prepare`"
        )
    return [places[sha256] for sha256 in wanted]


def _by_group(places: Sequence[Place]) -> dict[tuple[Path, int], list[tuple[int, int]]]:
    """Return index and row of each image, by shard and row group."""
    groups: dict[tuple[Path, int], list[tuple[int, int]]] = defaultdict(list)
    for position, (shard, group, row) in enumerate(places):
        groups[shard, group].append((position, row))
    return groups


def _find(raw: Path, wanted: set[str]) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for shard in sorted(raw.glob("*.parquet")):
        digests = read_columns(shard, ["sha256"])["sha256"].to_pylist()
        with open_shard(shard) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        rows = ((group, row) for group, size in enumerate(sizes) for row in range(size))
        for sha256, (group, row) in zip(digests, rows, strict=True):
            if sha256 in wanted:
                places[sha256] = (shard, group, row)
    return places


def _read(shard: Path, group: int, rows: list[tuple[int, int]]) -> list[tuple[int, bytes]]:
    """Read images of one row group. `rows` are pairs of an index, which is returned, and a row."""
    with open_shard(shard) as file:
        images = file.read_row_group(group, columns=["image"], use_threads=False)["image"]
    return [(position, images[row].as_py()) for position, row in rows]
