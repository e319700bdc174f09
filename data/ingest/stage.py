"""Stage `ingest`: writes the original bytes of a source to few large files, `data/raw/*.parquet`."""

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
"""Cache of the state of each shard's source files, so that unchanged files are not read again."""

MEAN_SHARD_IMAGES = 256
"""A shard is the unit of parallel work, and is processed again as a whole when one of its images changes."""
MAX_SHARD_BYTES = 128 * 2**20
ROWS_TOGETHER, BYTES_TOGETHER = 64, 2**21
"""Maximum number and bytes of the images in a row group, which a thread holds in memory. The images are copied into the
group's page, and the page into the file. With 4.5 MB, both copies take twice as long, because they leave the cache."""


class _Row(NamedTuple):
    """Row of an image in a raw shard."""

    origin: str
    label: str
    split: Split | None
    sha256: str
    image: bytes


SCHEMA = pa.schema([*((name, pa.string()) for name in _Row._fields[:-1]), ("image", pa.binary())])


def ingest(config: DataConfig, raw: Path, state_file: Path) -> None:
    """Write the images of the configured source to `raw`. Shards with unchanged source files are kept.

    `rejected.json` lists the rejected files. It is written last, so a folder with this file is complete.

    Raises:
        UserError: the source is missing, empty, or has only one class; a class has no readable file.

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
    write_states(state_file, known)  # drops damaged lines
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
    """Group images, ordered by origin. The cuts depend on the origins, so that added images change few groups."""

    def is_cut(image: SourceImage, num_images: int, num_bytes: int) -> bool:
        draw = int(hashlib.sha256(image.origin.encode()).hexdigest()[:8], 16)
        return draw % MEAN_SHARD_IMAGES == 0 or num_images >= 4 * MEAN_SHARD_IMAGES or num_bytes >= MAX_SHARD_BYTES

    return _cut(images, is_cut)


def _cut(images: Iterable[SourceImage], is_cut: Callable[[SourceImage, int, int], bool]) -> Iterator[list[SourceImage]]:
    """Group images. `is_cut` tells from the last image, and from number and bytes of its group if the group is full."""
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
    """Write shards, in one thread per core. Threads suffice, because Python code does little of the work.

    The state of a shard is written before the shard is renamed, so that an interruption never leaves an unknown shard.
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
    """Write one parquet file, unless `stopped` is set."""
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


# The images are compressed already. Dictionaries pay off for repeated words.
_COMPRESSION = {"compression": {"image": "none", "origin": "zstd", "label": "zstd", "split": "zstd", "sha256": "none"},
                "use_dictionary": ["label", "split"], "write_statistics": False}  # fmt: skip


def _read(image: SourceImage, config: DataConfig) -> _Row | Rejected:
    """Read an image. Returns its row, or the reason for its rejection."""
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
    """Name a shard by its content, so that an unchanged shard keeps its name."""
    return _digest([image.origin, image.label, image.split] for image in images)


def _shard_state(images: list[SourceImage], config: DataConfig) -> str:
    """Digest of the state of a shard's source files, which are not read."""
    return _digest([image.state, _size_state(image, config)] for image in images)


def _size_state(image: SourceImage, config: DataConfig) -> str | float | None:
    """Return the decision of the size limit on a file, or else the limit, because only reading tells the size."""
    return _size_reason(image.num_bytes, config) if isinstance(image.content, str) else config.max_file_mb


def _size_reason(num_bytes: int, config: DataConfig) -> str | None:
    if num_bytes > config.max_file_mb * 2**20:
        return f"{num_bytes / 2**20:.1f} MB, more than data.max_file_mb={config.max_file_mb:g}"
    return None if num_bytes else "empty file"


def _digest(items: Iterable[object]) -> str:
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:16]


def _finish(raw: Path, listing: Listing, states: States) -> None:
    """Remove files of an earlier source or an interruption, and list the rejected files."""
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
