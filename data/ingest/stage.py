"""Stage `ingest`: from a source to `data/raw/*.parquet`, the original bytes in few large files."""

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from threading import Event, Lock
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from core.errors import UserError
from core.files import remove_unfinished, whole_file
from core.machine import num_cores
from data.config import NEED_PATH, DataConfig
from data.ingest.raw_shards import RAW, REJECTED_FILE, SHARD_PATTERN, column
from data.ingest.shard_states import ShardState, States, add_state, is_as_written, read_states, write_states, written
from data.sources.base import Listing, Rejected, SourceImage
from data.sources.registry import open_source
from data.splits import Split
from data.stages import read_params, run_stage

STATE_FILE = Path("outputs/ingest-shards.jsonl")
"""A cache: the state of the files behind each shard, so that unchanged ones are not read again."""

MEAN_SHARD_IMAGES = 256
"""A shard is the unit of parallel work, and of what is done again when images are added."""
MAX_SHARD_BYTES = 128 * 2**20
ROWS_TOGETHER, BYTES_TOGETHER = 64, 2**21
"""Images that a thread has in memory, so many at most or so many bytes: a row group of the shard. They are copied into
its one page, and that into the file: of 4.5 MB, both copies take twice as long, as neither is in the cache any more."""


class _Row(NamedTuple):
    """What is kept of an image."""

    origin: str
    label: str
    split: Split | None
    sha256: str
    image: bytes


SCHEMA = pa.schema([*((name, pa.string()) for name in _Row._fields[:-1]), ("image", pa.binary())])


def ingest(config: DataConfig, raw: Path, state_file: Path) -> None:
    """Write the images of the configured source to `raw`; shards whose files have not changed are kept as they are.

    `rejected.json` lists what could not be read; it is written last, so that a folder that has it is complete.

    Raises:
        UserError: the source is missing, empty, or has one class only; a class has no file that can be read.

    """
    _check_apart(config, raw)
    listing = open_source(config).list_images()
    raw.mkdir(parents=True, exist_ok=True)
    (raw / REJECTED_FILE).unlink(missing_ok=True)
    known = read_states(state_file)
    states: States = {}
    changed: dict[str, list[SourceImage]] = {}
    for images in cut_into_shards(listing.images):
        name = f"{_shard_name(images)}.parquet"
        kept = known.get(name)
        if kept and kept["state"] == _shard_state(images, config) and is_as_written(raw / name, kept):
            states[name] = kept
        else:
            changed[name] = images
    write_states(state_file, known)  # without what could not be read
    num_kept = len(listing.images) - sum(map(len, changed.values()))
    with (
        tqdm(total=len(listing.images), initial=num_kept, unit="image", desc="ingest", disable=None) as progress,
        closing(_write_shards(raw, changed, config, state_file)) as finished,
    ):
        for name, state in finished:
            states[name] = state
            progress.update(len(changed[name]))
    write_states(state_file, states)
    _finish(raw, listing, states)


def _check_apart(config: DataConfig, raw: Path) -> None:
    if config.source in NEED_PATH and config.path:
        source, own = config.path.resolve(), raw.resolve()
        if source.is_relative_to(own) or own.is_relative_to(source):
            raise UserError(
                f"data.path: {str(source)!r} overlaps with {raw}, which Convoy writes: move the images elsewhere"
            )


def cut_into_shards(images: Iterable[SourceImage]) -> Iterator[list[SourceImage]]:
    """Group images, ordered by origin, so that adding some changes few groups: the cuts depend on the origins alone."""

    def is_cut(image: SourceImage, num_images: int, num_bytes: int) -> bool:
        draw = int(hashlib.sha256(image.origin.encode()).hexdigest()[:8], 16)
        return draw % MEAN_SHARD_IMAGES == 0 or num_images >= 4 * MEAN_SHARD_IMAGES or num_bytes >= MAX_SHARD_BYTES

    return _cut(images, is_cut)


def _cut(images: Iterable[SourceImage], is_cut: Callable[[SourceImage, int, int], bool]) -> Iterator[list[SourceImage]]:
    """Group images: from the latest one, and from the number and bytes of its group, `is_cut` tells if that is full."""
    group: list[SourceImage] = []
    num_bytes = 0
    for image in images:
        group.append(image)
        num_bytes += image.num_bytes
        if is_cut(image, len(group), num_bytes):
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _write_shards(
    raw: Path, shards: dict[str, list[SourceImage]], config: DataConfig, state_file: Path
) -> Generator[tuple[str, ShardState]]:
    """Write shards, one in each of as many threads as there are cores: little of it is done in Python.

    Each is noted before it is in its place, so that whatever happens then, it is not written again.
    """
    stopped, noting = Event(), Lock()

    def write(name: str) -> ShardState:
        with whole_file(raw / name) as temporary:
            state = _write_shard(temporary, shards[name], config, stopped)
            with noting:
                add_state(state_file, name, state)
        return state

    pool = ThreadPoolExecutor(num_cores())
    try:
        yield from zip(shards, pool.map(write, shards), strict=True)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _write_shard(path: Path, images: list[SourceImage], config: DataConfig, stopped: Event) -> ShardState:
    """Write one parquet file, unless the work is stopped."""
    rejected = []
    with pq.ParquetWriter(path, SCHEMA, **_COMPRESSION) as writer:
        for group in _cut(images, lambda _, rows, size: rows >= ROWS_TOGETHER or size >= BYTES_TOGETHER):
            if stopped.is_set():
                raise CancelledError
            table, passed_over = _read_all(group, config)
            writer.write_table(table)
            rejected += [asdict(row) for row in passed_over]
    return {"state": _shard_state(images, config), "written": written(path), "rejected": rejected}


def _read_all(group: list[SourceImage], config: DataConfig) -> tuple[pa.Table, list[Rejected]]:
    """Read images into a table of `SCHEMA`."""
    read = [_read(image, config) for image in group]
    rows = [row for row in read if isinstance(row, _Row)]
    columns = [column([getattr(row, name) for row in rows]) for name in SCHEMA.names]
    columns[-1] = columns[-1].view(pa.binary())
    return pa.table(columns, SCHEMA), [row for row in read if isinstance(row, Rejected)]


# The images are compressed already; a dictionary pays for words that repeat.
_COMPRESSION = {"compression": {"image": "none", "origin": "zstd", "label": "zstd", "split": "zstd", "sha256": "none"},
                "use_dictionary": ["label", "split"], "write_statistics": False}  # fmt: skip


def _read(image: SourceImage, config: DataConfig) -> _Row | Rejected:
    """Give the row of an image, if it can be used."""
    if isinstance(image.content, str) and (reason := _size_reason(image.num_bytes, config)):
        return Rejected(image.origin, reason)
    try:
        content = _content(image)
    except OSError as error:
        return Rejected(image.origin, f"cannot be read: {error.strerror or error}")
    if reason := _size_reason(len(content), config):
        return Rejected(image.origin, reason)
    return _Row(image.origin, image.label, image.split, hashlib.sha256(content).hexdigest(), content)


def _content(image: SourceImage) -> bytes:
    if isinstance(image.content, str):
        return Path(image.content).read_bytes()
    return image.content if isinstance(image.content, bytes) else image.content()


def _shard_name(images: list[SourceImage]) -> str:
    """Names a shard by what is in it, so that a shard that is not touched keeps its name."""
    return _digest([image.origin, image.label, image.split] for image in images)


def _shard_state(images: list[SourceImage], config: DataConfig) -> str:
    """Names the state of the files behind a shard without reading them."""
    return _digest([image.state, _size_state(image, config)] for image in images)


def _size_state(image: SourceImage, config: DataConfig) -> str | float | None:
    """Name what the limit on sizes decides; for what is no file, whose size is known when it is read, the limit."""
    return _size_reason(image.num_bytes, config) if isinstance(image.content, str) else config.max_file_mb


def _size_reason(num_bytes: int, config: DataConfig) -> str | None:
    if num_bytes > config.max_file_mb * 2**20:
        return f"{num_bytes / 2**20:.1f} MB, more than data.max_file_mb={config.max_file_mb:g}"
    return None if num_bytes else "empty file"


def _digest(items: Iterable[object]) -> str:
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:16]


def _finish(raw: Path, listing: Listing, states: States) -> None:
    """Remove what an earlier source or an interruption has left, and list what was rejected."""
    for shard in raw.glob(SHARD_PATTERN):
        if shard.name not in states:
            shard.unlink()
    remove_unfinished(raw)
    unreadable = [row for state in states.values() for row in state["rejected"]]
    _check_classes(listing.images, {row["path"]: row["reason"] for row in unreadable})
    rejected = [*(asdict(row) for row in listing.rejected), *unreadable]
    content = json.dumps(sorted(rejected, key=lambda row: row["path"]), indent=1, ensure_ascii=False)
    with whole_file(raw / REJECTED_FILE) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _check_classes(images: Sequence[SourceImage], reasons: dict[str, str]) -> None:
    readable = {image.label for image in images if image.origin not in reasons}
    for image in images:
        if image.label not in readable:
            raise UserError(
                f"data.path: none of the files of class {image.label!r} can be read, the first is {image.origin!r} "
                f"({reasons[image.origin]}): mend the files, or remove the class"
            )


def main() -> None:
    """Run the stage with the parameters that DVC tracks."""
    params = read_params("ingest")
    ingest(DataConfig.model_validate(params), RAW, STATE_FILE)


if __name__ == "__main__":
    run_stage(main)
