"""One raw shard prepared: the unit of parallel work, of resuming, and of what is done again when images change."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from data.color import ColorCounter, ColorSums
from data.config import DataConfig
from data.conflicts import Dropped
from data.decode import DecodeError, Pixels, Preprocessing
from data.describe import ImageFacts, decode_and_describe
from data.ingest import READ_AHEAD
from data.manifest import Model, RejectedImage, Shard
from data.sources import Split
from data.splits import split_of
from data.stage import whole_file

CODE = ("color.py", "decode.py", "describe.py", "part.py", "splits.py")
"""What a part depends on: a change here prepares everything anew."""

NOT_IN_PARTS = {
    *("source", "path", "max_file_mb", "on_conflict", "min_side", "max_aspect_ratio", "max_imbalance", "scheduler")
}
"""Fields of the configuration that pixels do not depend on."""


class Row(Model):
    """One usable image, in the order of its shard."""

    origin: str
    label: str
    sha256: str
    facts: ImageFacts


class Plan(Model):
    """What all parts have in common."""

    config: DataConfig
    missing: frozenset[Split]
    dropped: Dropped = Field(default_factory=dict)

    @property
    def preprocessing(self) -> Preprocessing:
        """All of the stored square is kept; a network that sees less crops it."""
        return Preprocessing(size=self.config.size, crop=self.config.size, max_pixels=self.config.max_pixels)

    @property
    def key(self) -> str:
        """Names everything, besides the images, that a part depends on."""
        code = [PIL.__version__, *((Path(__file__).parent / name).read_text(encoding="utf-8") for name in CODE)]
        config = self.config.model_dump(mode="json", exclude=NOT_IN_PARTS)
        return _digest(json.dumps([config, sorted(self.missing), code]).encode())


class Part(Model):
    """What became of one raw shard."""

    name: str
    key: str
    shards: tuple[Shard, ...]
    rows: dict[Split, tuple[Row, ...]]
    dropped: dict[Split, tuple[Row, ...]]
    """usable, but left out for their copies elsewhere"""
    rejected: tuple[RejectedImage, ...]
    """all that is not in `rows`"""
    color: ColorSums

    @property
    def num_images(self) -> int:
        """Usable images."""
        return sum(len(rows) for rows in self.rows.values())


def prepare_part(raw: Path, *, plan: Plan, prepared: Path, parts: Path) -> Path:
    """Prepare one raw shard, or recognize that it has been: same images, same parameters, same code, files unaltered.

    Returns the file that holds the `Part`: the parts of many shards are not worth carrying between processes.
    """
    record = parts / f"{raw.stem}.json"
    key = _digest(json.dumps([plan.key, _images(raw), plan.dropped.get(raw.stem)]).encode())
    if not _is_done(record, key, prepared):
        part = _prepare(raw, key, plan, prepared)
        with whole_file(record) as temporary:
            temporary.write_text(part.model_dump_json(), encoding="utf-8")
    return record


def read_part(record: Path) -> Part:
    """Read what `prepare_part` has written."""
    return Part.model_validate_json(record.read_bytes())


def _is_done(record: Path, key: str, prepared: Path) -> bool:
    try:
        part = read_part(record)
    except (FileNotFoundError, ValidationError):
        # A record in another form is of another version of this code.
        return False
    return part.key == key and all(_is_unaltered(prepared, shard) for shard in part.shards)


def _images(raw: Path) -> str:
    """Name the images of a raw shard by the checksums that were taken when they were read from their source."""
    return _digest(json.dumps(pq.ParquetFile(raw).read(["origin", "sha256"]).to_pydict()).encode())


def _prepare(raw: Path, key: str, plan: Plan, prepared: Path) -> Part:
    rows: dict[Split, list[Row]] = defaultdict(list)
    dropped: dict[Split, list[Row]] = defaultdict(list)
    rejected, color = [], ColorCounter()
    reasons = plan.dropped.get(raw.stem, {})
    with ExitStack() as files:
        append: dict[Split, Callable[[Pixels], None]] = {}
        for record in _records(raw):
            try:
                pixels, facts = decode_and_describe(record["image"], plan.preprocessing)
            except DecodeError as error:
                rejected.append(RejectedImage(path=record["origin"], reason=str(error)))
                continue
            split = split_of(record["sha256"], plan.config, given=record["split"], missing=plan.missing)
            row = Row(origin=record["origin"], label=record["label"], sha256=record["sha256"], facts=facts)
            if row.origin in reasons:
                rejected.append(RejectedImage(path=row.origin, reason=reasons[row.origin]))
                dropped[split].append(row)
                continue
            if split not in append:
                append[split] = files.enter_context(_growing(_path(prepared, split, raw), pixels.shape))
            append[split](pixels)
            rows[split].append(row)
            if split == "train":
                color.add(pixels)
    return Part(
        name=raw.stem,
        key=key,
        shards=tuple(_describe(split, _path(prepared, split, raw), len(rows[split])) for split in sorted(rows)),
        rows={split: tuple(rows[split]) for split in sorted(rows)},
        dropped={split: tuple(dropped[split]) for split in sorted(dropped)},
        rejected=tuple(rejected),
        color=color.sums,
    )


def _records(raw: Path) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(raw, memory_map=True).iter_batches(batch_size=READ_AHEAD):
        yield from batch.to_pylist()


def _path(prepared: Path, split: Split, raw: Path) -> Path:
    return prepared / f"{split}-{raw.stem}.npy"


@contextmanager
def _growing(path: Path, shape: tuple[int, ...]) -> Iterator[Callable[[Pixels], None]]:
    """Give a function that appends one image of `shape` to a .npy file: memory does not grow with the shard.

    NumPy pads the header so that it can be written again once the number of images is known. (Not `np.save`: where the
    disk is full, it does not say so.)
    """
    num_images = 0

    def append(pixels: Pixels) -> None:
        nonlocal num_images
        file.write(pixels.data)
        num_images += 1

    def write_header() -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *shape)}
        np.lib.format.write_array_header_1_0(file, header)

    with whole_file(path) as temporary, temporary.open("wb") as file:
        write_header()
        yield append
        file.seek(0)
        write_header()


def _describe(split: Split, path: Path, num_images: int) -> Shard:
    return Shard(split=split, name=path.name, num_images=num_images, sha256=_file_digest(path))


def _is_unaltered(prepared: Path, shard: Shard) -> bool:
    path = prepared / shard.name
    return path.is_file() and _file_digest(path) == shard.sha256


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
