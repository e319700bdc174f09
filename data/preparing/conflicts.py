"""Choice of the copies of an image that `data.on_conflict` drops, before anything is decoded."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from data.config import DataConfig
from data.ingest.raw_shards import read_columns
from data.preparing.shard import Dropped
from data.quality.decisions import Decided
from data.splits import Split, split_of

STRONGER: tuple[Split, ...] = ("test", "val", "train")
"""The copy in the first of these splits stays, so that test images never change."""


class Copy(NamedTuple):
    """One of several images with equal bytes."""

    shard: str
    origin: str
    label: str
    split: Split


def find_dropped(shards: Sequence[Path], config: DataConfig, missing: frozenset[Split], decided: Decided) -> Dropped:
    """Find images under two labels or in two splits among the raw shards, by their checksums.

    Decisions by people come first: a conflict that they settle is no conflict.
    """
    dropped: Dropped = {}
    for copies in _copies(shards, config, missing):
        labels = [decided.label_of(copy.shard, copy.origin, copy.label) for copy in copies]
        left = [copy._replace(label=label) for copy, label in zip(copies, labels, strict=True) if label is not None]
        for copy, reason in _losers(left) if left else ():
            dropped.setdefault(copy.shard, {})[copy.origin] = reason
    return dropped


def _copies(shards: Sequence[Path], config: DataConfig, missing: frozenset[Split]) -> Iterator[list[Copy]]:
    """Yield groups of equal bytes. Checksums stay in Arrow's arrays, and only copies become Python objects."""
    tables = [read_columns(shard, ["origin", "label", "split", "sha256"]) for shard in shards]
    checksums = pa.chunked_array([chunk for table in tables for chunk in table["sha256"].chunks], pa.string())
    counts = checksums.value_counts()
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    groups: dict[str, list[Copy]] = {}
    for shard, table in zip(shards, tables, strict=True):
        for row in table.filter(pc.is_in(table["sha256"], value_set=repeated)).to_pylist():
            split = split_of(row["sha256"], config, given=row["split"], missing=missing)
            groups.setdefault(row["sha256"], []).append(Copy(shard.stem, row["origin"], row["label"], split))
    yield from groups.values()


def _losers(copies: Sequence[Copy]) -> Iterator[tuple[Copy, str]]:
    """Yield the copies to drop: all copies under two labels, and the weaker splits of copies in two splits."""
    labels = sorted({copy.label for copy in copies})
    if len(labels) > 1:
        reason = f"the same image under {len(labels)} labels: {', '.join(labels)}"
        yield from ((copy, reason) for copy in copies)
        return
    winner = min(copies, key=lambda copy: STRONGER.index(copy.split))
    for copy in copies:
        if copy.split != winner.split:
            yield copy, f"the same image is in the {winner.split} split: {winner.origin}"
