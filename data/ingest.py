"""Stage `ingest`: from a source to `data/raw/*.parquet`, the original bytes in few large files."""

import hashlib
import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Never, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data.columns import binaries, texts
from data.config import DataConfig
from data.errors import UserError
from data.sources import Listing, Rejected, SourceImage, Split, open_source
from data.stage import num_cores, read_params, remove_unfinished, run_stage, whole_file

RAW = Path("data/raw")
REJECTED_FILE = "rejected.json"
STATE_FILE = Path("outputs/ingest-shards.json")
"""A cache: the state of the files behind each shard, so that unchanged ones are not read again."""

SHARD_PATTERN = "[0-9a-f]" * 16 + ".parquet"
"""Whatever else lies in the folder is not ours to remove."""

MEAN_SHARD_IMAGES = 256
"""A shard is the unit of parallel work, and of what is done again when images are added."""
MAX_SHARD_BYTES = 128 * 2**20
READ_AHEAD = 64
"""Files read at a time."""
READ_TOGETHER = 8
"""Files that a thread reads before it asks for more: to ask costs as much as to read a small one."""

States = dict[str, "ShardState"]


class ShardState(TypedDict):
    """What was known of a shard when it was written."""

    state: str
    """of the files behind it"""
    written: list[int]
    """its own size and time"""
    rejected: list[dict[str, str]]


_Row = tuple[str, str, Split | None, str, bytes]
_Rows = list[_Row | Rejected]
SCHEMA = pa.schema(
    [
        ("origin", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.string()),
        ("image", pa.binary()),
    ]
)


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
    known = _read_states(state_file)
    states: States = {}
    changed: dict[str, list[SourceImage]] = {}
    with tqdm(total=len(listing.images), unit="image", desc="ingest", disable=None) as progress:
        for images in cut_into_shards(listing.images):
            name = f"{_shard_name(images)}.parquet"
            kept = known.get(name)
            if kept and kept["state"] == _shard_state(images, config) and _is_as_written(raw / name, kept):
                states[name] = kept
                progress.update(len(images))
            else:
                changed[name] = images
        with closing(_read_ahead(changed.values(), config)) as rows:
            for name, images in changed.items():
                rejected = _write_shard(raw / name, rows, len(images), progress)
                state = _shard_state(images, config)
                states[name] = {"state": state, "written": _written(raw / name), "rejected": rejected}
                _write_json(state_file, known | states)
    _write_json(state_file, states)
    _finish(raw, listing, states)


def raw_shards(raw: Path) -> list[Path]:
    """List the shards in `raw`.

    Raises:
        UserError: `ingest` has not finished.

    """
    if not (raw / REJECTED_FILE).is_file():
        raise UserError(f"{raw} is missing or half-written: ingest the images with `convoy data ingest`")
    return sorted(raw.glob(SHARD_PATTERN))


def _check_apart(config: DataConfig, raw: Path) -> None:
    if config.source in ("folder", "parquet") and config.path:
        source, own = config.path.resolve(), raw.resolve()
        if source.is_relative_to(own) or own.is_relative_to(source):
            raise UserError(
                f"data.path: {str(source)!r} overlaps with {raw}, which Convoy writes: move the images elsewhere"
            )


def cut_into_shards(images: Iterable[SourceImage]) -> Iterator[list[SourceImage]]:
    """Group images, ordered by origin, so that adding some changes few groups: the cuts depend on the origins alone."""
    shard: list[SourceImage] = []
    num_bytes = 0
    for image in images:
        shard.append(image)
        num_bytes += image.num_bytes
        is_cut = int(hashlib.sha256(image.origin.encode()).hexdigest()[:8], 16) % MEAN_SHARD_IMAGES == 0
        if is_cut or len(shard) >= 4 * MEAN_SHARD_IMAGES or num_bytes >= MAX_SHARD_BYTES:
            yield shard
            shard, num_bytes = [], 0
    if shard:
        yield shard


def _write_shard(path: Path, rows: Iterator[_Rows], num_images: int, progress: "tqdm[Never]") -> list[dict[str, str]]:
    """Write one parquet file of the rows that come next; returns what could not be read, with the reasons."""
    rejected = []
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, **_COMPRESSION) as writer:
        for start in range(0, num_images, READ_AHEAD):
            num_together = min(READ_AHEAD, num_images - start)
            read = [row for some in islice(rows, -(-num_together // READ_TOGETHER)) for row in some]
            rejected += [asdict(row) for row in read if isinstance(row, Rejected)]
            writer.write_table(_table([row for row in read if isinstance(row, tuple)]))
            progress.update(num_together)
    return rejected


def _table(rows: list[_Row]) -> pa.Table:
    *words, images = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    return pa.table([*map(texts, words), binaries(images)], SCHEMA)


def _read_ahead(shards: Iterable[list[SourceImage]], config: DataConfig) -> Generator[_Rows]:
    """Read images in their order, some of a shard together: while they are written, the next ones are read."""
    waiting: deque[Future[_Rows]] = deque()
    with ThreadPoolExecutor(num_cores()) as pool:
        try:
            for images in shards:
                for first in range(0, len(images), READ_TOGETHER):
                    waiting.append(pool.submit(_read_all, images[first : first + READ_TOGETHER], config))
                    if len(waiting) > READ_AHEAD // READ_TOGETHER:
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# The images are compressed already; a dictionary pays for words that repeat.
_COMPRESSION = {"compression": {"image": "none", "origin": "zstd", "label": "zstd", "split": "zstd", "sha256": "none"},
                "use_dictionary": ["label", "split"], "write_statistics": False}  # fmt: skip


def _read_all(images: list[SourceImage], config: DataConfig) -> _Rows:
    return [_read(image, config) for image in images]


def _read(image: SourceImage, config: DataConfig) -> _Row | Rejected:
    if isinstance(image.content, Path) and (reason := _size_reason(image.num_bytes, config)):
        return Rejected(image.origin, reason)
    try:
        content = _content(image)
    except OSError as error:
        return Rejected(image.origin, f"cannot be read: {error.strerror}")
    if reason := _size_reason(len(content), config):
        return Rejected(image.origin, reason)
    return image.origin, image.label, image.split, hashlib.sha256(content).hexdigest(), content


def _content(image: SourceImage) -> bytes:
    if isinstance(image.content, bytes):
        return image.content
    return image.content.read_bytes() if isinstance(image.content, Path) else image.content()


def _shard_name(images: list[SourceImage]) -> str:
    """Names a shard by what is in it, so that a shard that is not touched keeps its name."""
    return _digest([image.origin, image.label, image.split] for image in images)


def _shard_state(images: list[SourceImage], config: DataConfig) -> str:
    """Names the state of the files behind a shard without reading them."""
    return _digest([image.state, _size_state(image, config)] for image in images)


def _size_state(image: SourceImage, config: DataConfig) -> str | float | None:
    """Name what the limit on sizes decides; for what is no file, whose size is known when it is read, the limit."""
    return _size_reason(image.num_bytes, config) if isinstance(image.content, Path) else config.max_file_mb


def _size_reason(num_bytes: int, config: DataConfig) -> str | None:
    if num_bytes > config.max_file_mb * 2**20:
        return f"{num_bytes / 2**20:.1f} MB, more than data.max_file_mb={config.max_file_mb:g}"
    return None if num_bytes else "empty file"


def _is_as_written(shard: Path, known: ShardState) -> bool:
    return shard.is_file() and known["written"] == _written(shard)


def _written(shard: Path) -> list[int]:
    """Tell the shard as it was written from one that was altered."""
    status = shard.stat()
    return [status.st_size, status.st_mtime_ns]


def _digest(items: Iterable[object]) -> str:
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:16]


def _read_states(state_file: Path) -> States:
    """Read what an earlier run knew; a cache that cannot be read is none."""
    try:
        states: States = json.loads(state_file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return states


def _finish(raw: Path, listing: Listing, states: States) -> None:
    """Remove what an earlier source or an interruption has left, and list what was rejected."""
    for shard in raw.glob(SHARD_PATTERN):
        if shard.name not in states:
            shard.unlink()
    remove_unfinished(raw)
    unreadable = [row for state in states.values() for row in state["rejected"]]
    _check_classes(listing.images, {row["path"]: row["reason"] for row in unreadable})
    rejected = [*(asdict(row) for row in listing.rejected), *unreadable]
    _write_json(raw / REJECTED_FILE, sorted(rejected, key=lambda row: row["path"]))


def _check_classes(images: Sequence[SourceImage], reasons: dict[str, str]) -> None:
    readable = {image.label for image in images if image.origin not in reasons}
    for image in images:
        if image.label not in readable:
            raise UserError(
                f"data.path: none of the files of class {image.label!r} can be read, the first is {image.origin!r} "
                f"({reasons[image.origin]}): mend the files, or remove the class"
            )


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    """Run the stage with the parameters that DVC tracks."""
    params = read_params("ingest")
    ingest(DataConfig.model_validate(params), RAW, STATE_FILE)


if __name__ == "__main__":
    run_stage(main)
