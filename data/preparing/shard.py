"""Preparation of one raw shard, the unit of parallel work, of resuming, and of repeated work when images change."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from core import code
from core.checksum import file_checksum
from core.files import whole_file
from data.config import DataConfig
from data.images.decode import DECODERS, DecodeError, Pixels, Preprocessing
from data.ingest.raw_shards import open_shard
from data.manifest import Model, RejectedImage, Shard
from data.preparing.array_file import GrowingArray, growing_array
from data.preparing.color_statistics import ColorCounter, ColorSums
from data.quality.traits import Described, decode_and_describe, perceptual_hashes
from data.splits import Split, split_of

BLOCK_BYTES = 2**21
"""Bytes of pixels that are hashed, written and counted together. Larger blocks gain nothing. Blocks must be written
before the next decoding pushes them out of the cache."""

NOT_IN_PARTS = {
    *("source", "path", "max_file_mb", "on_conflict", "min_side", "max_aspect_ratio", "max_imbalance", "scheduler"),
    "group_near_duplicates",
}
"""Fields of the configuration that do not change the pixels."""


Dropped = dict[str, dict[str, str]]
"""Reasons by origin, for the stem of each raw shard."""


class Row(NamedTuple):
    """Usable image, in the order of its shard. A pydantic model would be ten times as slow to create and to read."""

    origin: str
    label: str
    sha256: str
    width: int
    height: int
    traits: tuple[str, ...]
    look: int
    """perceptual hash of the prepared pixels, 64 bits"""


class Plan(Model):
    """Shared inputs of all parts."""

    config: DataConfig
    missing: frozenset[Split]
    dropped: Dropped = Field(default_factory=dict)
    code: str = Field(default_factory=lambda: code.digest(__name__))
    """digest of this module and its imports, computed once for all processes"""

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing without a crop. A network with a smaller input crops the stored square."""
        return Preprocessing(size=self.config.size, crop=self.config.size, max_pixels=self.config.max_pixels)

    @property
    def drawn_splits(self) -> frozenset[Split]:
        """Splits whose images were drawn, and not chosen by the user."""
        return self.missing | {"train"} if self.missing else frozenset()

    @cached_property
    def key(self) -> str:
        """Digest of everything, except the images, on which a part depends."""
        config = self.config.model_dump(mode="json", exclude=NOT_IN_PARTS)
        content = [config, sorted(self.missing), [*map(version, DECODERS)], self.code]
        return _digest(json.dumps(content).encode())


class Part(Model):
    """Result of preparing one raw shard."""

    name: str
    key: str
    shards: tuple[Shard, ...]
    rows: dict[Split, tuple[Row, ...]]
    dropped: dict[Split, tuple[Row, ...]]
    """usable images that were left out because of their copies"""
    rejected: tuple[RejectedImage, ...]
    """all images that are not in `rows`"""
    color: ColorSums
    moved: dict[str, Split] = Field(default_factory=dict)
    """drawn split of each image that `data.preparing.regroup` has moved, by origin"""

    @property
    def num_images(self) -> int:
        """Number of usable images."""
        return sum(len(rows) for rows in self.rows.values())


def prepare_part(raw: Path, *, plan: Plan, prepared: Path, parts: Path) -> Path:
    """Prepare one raw shard, unless this has been done: same images, parameters and code, and unaltered files.

    Returns the file of the `Part`, because many parts are too large to pass between processes.
    """
    record = parts / f"{raw.stem}.json"
    with open_shard(raw) as file:
        listed = file.read(["origin", "label", "sha256", "split"], use_threads=False).to_pydict()
        # The checksums of the images were computed during ingest.
        named = {"origin": listed["origin"], "sha256": listed["sha256"]}
        key = _digest(json.dumps([plan.key, _digest(json.dumps(named).encode()), plan.dropped.get(raw.stem)]).encode())
        if not _is_done(record, key, prepared):
            write_part(record, _prepare(raw.stem, file, listed, key, plan, prepared))
    return record


def write_part(record: Path, part: Part) -> None:
    """Write a part to its file, for the next run."""
    with whole_file(record) as temporary:
        temporary.write_text(part.model_dump_json(), encoding="utf-8")


def read_part(record: Path) -> Part:
    """Read the result of `prepare_part`."""
    return Part.model_validate_json(record.read_bytes())


def _is_done(record: Path, key: str, prepared: Path) -> bool:
    try:
        part = read_part(record)
    except (FileNotFoundError, ValidationError):
        # Another version of this code wrote an invalid record.
        return False
    return part.key == key and all(_is_unaltered(prepared, shard) for shard in part.shards)


def _prepare(
    name: str, file: pq.ParquetFile, listed: dict[str, list[Any]], key: str, plan: Plan, prepared: Path
) -> Part:
    spec, reasons = plan.preprocessing, plan.dropped.get(name, {})
    splits = _splits(listed, plan)
    arrays: dict[Split, GrowingArray] = {}
    kept: dict[Split, _Images] = {}
    dropped: dict[Split, _Images] = {}
    rejected, color = [], ColorCounter()
    with ExitStack() as files:

        def begin(split: Split) -> _Images:
            array = growing_array(prepared / f"{split}-{name}.npy", (spec.size, spec.size, 3))
            arrays[split] = files.enter_context(array)
            takers = [arrays[split].append, color.add] if split == "train" else [arrays[split].append]
            return _Images(spec.size, takers)

        known = zip(listed["origin"], listed["label"], listed["sha256"], splits, strict=True)
        for (origin, label, sha256, split), image in zip(known, _encoded(file), strict=True):
            try:
                described = decode_and_describe(image, spec, plan.config.max_decoding_seconds)
            except DecodeError as error:
                rejected.append(RejectedImage(path=origin, reason=str(error)))
                continue
            if origin in reasons:
                rejected.append(RejectedImage(path=origin, reason=reasons[origin]))
                group = dropped.get(split) or dropped.setdefault(split, _Images(spec.size))
            else:
                group = kept.get(split) or kept.setdefault(split, begin(split))
            group.add(described, origin, label, sha256)
        rows, dropped_rows = (
            {split: group.rows() for split, group in sorted(some.items())} for some in (kept, dropped)
        )
    return Part(
        name=name,
        key=key,
        shards=tuple(make_shard(split, name, arrays[split]) for split in sorted(arrays)),
        rows=rows,
        dropped=dropped_rows,
        rejected=tuple(rejected),
        color=color.sums,
    )


class _Images:
    """Usable images of one split, processed in blocks, because calls for single images would dominate the time."""

    def __init__(self, size: int, takers: Sequence[Callable[[Pixels], None]] = ()) -> None:
        """Begin without images, which have `size` pixels per side. `takers` get the blocks, uint8 [N, S, S, 3]."""
        self._block = np.empty((max(1, BLOCK_BYTES // (3 * size**2)), size, size, 3), dtype=np.uint8)
        self._num_waiting = 0
        self._takers = takers
        self._noted: list[tuple[str, str, str, int, int, tuple[str, ...]]] = []
        self._looks: list[int] = []

    def add(self, described: Described, origin: str, label: str, sha256: str) -> None:
        self._block[self._num_waiting] = np.asarray(described.square)
        self._num_waiting += 1
        self._noted.append((origin, label, sha256, described.width, described.height, described.traits))
        if self._num_waiting == len(self._block):
            self._pass_on()

    def rows(self) -> tuple[Row, ...]:
        """Return the rows of all images, after the last image."""
        if self._num_waiting:
            self._pass_on()
        return tuple(Row(*noted, look) for noted, look in zip(self._noted, self._looks, strict=True))

    def _pass_on(self) -> None:
        images = self._block[: self._num_waiting]
        self._looks += perceptual_hashes(images)
        for take in self._takers:
            take(images)
        self._num_waiting = 0


def _splits(listed: dict[str, list[Any]], plan: Plan) -> list[Split]:
    pairs = zip(listed["sha256"], listed["split"], strict=True)
    return [split_of(sha256, plan.config, given=given, missing=plan.missing) for sha256, given in pairs]


def _encoded(file: pq.ParquetFile) -> Iterator[bytes]:
    """Yield the bytes of a raw shard's images, in order. One row group at a time is in memory."""
    for group in range(file.num_row_groups):
        yield from file.read_row_group(group, columns=["image"], use_threads=False)["image"].to_pylist()


def make_shard(split: Split, raw: str, array: GrowingArray) -> Shard:
    """Describe the finished array of one split of a raw shard."""
    return Shard(split=split, name=f"{split}-{raw}.npy", num_images=array.num_images, checksum=array.checksum)


def _is_unaltered(prepared: Path, shard: Shard) -> bool:
    path = prepared / shard.name
    return path.is_file() and file_checksum(path) == shard.checksum


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
