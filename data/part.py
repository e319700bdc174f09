"""One raw shard prepared: the unit of parallel work, of resuming, and of what is done again when images change."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL
from pydantic import Field, ValidationError

from data.checksum import file_checksum
from data.color import ColorCounter, ColorSums
from data.columns import open_shard, read_columns
from data.config import DataConfig
from data.conflicts import Dropped
from data.decode import DecodeError, Preprocessing
from data.describe import Described, ImageFacts, decode_and_describe
from data.growing import GrowingArray, growing_array
from data.manifest import Model, RejectedImage, Shard
from data.sources import Split
from data.splits import split_of
from data.stage import whole_file

CODE = ("checksum.py", "color.py", "decode.py", "describe.py", "growing.py", "part.py", "splits.py")
"""What a part depends on: a change here prepares everything anew."""

READ_TOGETHER, BYTES_TOGETHER = 16, 2**22
"""Images decoded together, so many at most and so many bytes of them prepared: more do not gain, and take memory that
the system has to clear first."""

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

    @cached_property
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
    listed = read_columns(raw, ["origin", "label", "sha256", "split"]).to_pydict()
    # The images are named by the checksums that were taken when they were read from their source.
    named = {"origin": listed["origin"], "sha256": listed["sha256"]}
    key = _digest(json.dumps([plan.key, _digest(json.dumps(named).encode()), plan.dropped.get(raw.stem)]).encode())
    if not _is_done(record, key, prepared):
        part = _prepare(raw, listed, key, plan, prepared)
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


def _prepare(raw: Path, listed: dict[str, list[Any]], key: str, plan: Plan, prepared: Path) -> Part:
    rows: dict[Split, list[Row]] = defaultdict(list)
    dropped: dict[Split, list[Row]] = defaultdict(list)
    rejected, color = [], ColorCounter()
    reasons = plan.dropped.get(raw.stem, {})
    splits = _splits(listed, plan)
    expected = Counter(split for origin, split in zip(listed["origin"], splits, strict=True) if origin not in reasons)
    arrays: dict[Split, GrowingArray] = {}
    known = zip(listed["origin"], listed["label"], listed["sha256"], splits, strict=True)
    with ExitStack() as files:
        for (origin, label, sha256, split), decoded in zip(known, _decoded(raw, plan.preprocessing), strict=True):
            if isinstance(decoded, DecodeError):
                rejected.append(RejectedImage(path=origin, reason=str(decoded)))
                continue
            pixels, facts = decoded
            row = Row(origin=origin, label=label, sha256=sha256, facts=facts)
            if origin in reasons:
                rejected.append(RejectedImage(path=origin, reason=reasons[origin]))
                dropped[split].append(row)
                continue
            if split not in arrays:
                array = growing_array(prepared / f"{split}-{raw.stem}.npy", pixels.shape, expected[split])
                arrays[split] = files.enter_context(array)
            arrays[split].append(pixels)
            rows[split].append(row)
            if split == "train":
                color.add(pixels)
    return Part(
        name=raw.stem,
        key=key,
        shards=tuple(_shard(split, raw, arrays[split]) for split in sorted(arrays)),
        rows={split: tuple(rows[split]) for split in sorted(rows)},
        dropped={split: tuple(dropped[split]) for split in sorted(dropped)},
        rejected=tuple(rejected),
        color=color.sums,
    )


def _splits(listed: dict[str, list[Any]], plan: Plan) -> list[Split]:
    pairs = zip(listed["sha256"], listed["split"], strict=True)
    return [split_of(sha256, plan.config, given=given, missing=plan.missing) for sha256, given in pairs]


def _decoded(raw: Path, spec: Preprocessing) -> Iterator[Described | DecodeError]:
    """Decode the images of a raw shard in their order, a few together."""
    num_together = max(1, min(READ_TOGETHER, BYTES_TOGETHER // (3 * spec.size**2)))
    with open_shard(raw, memory_map=True) as file:
        for batch in file.iter_batches(batch_size=num_together, columns=["image"], use_threads=False):
            yield from decode_and_describe(batch["image"].to_pylist(), spec)


def _shard(split: Split, raw: Path, array: GrowingArray) -> Shard:
    name = f"{split}-{raw.stem}.npy"
    return Shard(split=split, name=name, num_images=array.num_images, checksum=array.checksum)


def _is_unaltered(prepared: Path, shard: Shard) -> bool:
    path = prepared / shard.name
    return path.is_file() and file_checksum(path) == shard.checksum


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
