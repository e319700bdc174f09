"""Stage `prepare`: decodes `data/raw` to arrays that are memory-mapped and never decoded again."""

import gc
import io
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from core.errors import UserError
from core.files import remove_unfinished, whole_file
from data.config import DataConfig
from data.ingest.raw_shards import RAW, REJECTED_FILE, column, raw_shards, read_columns
from data.manifest import MANIFEST_FILE, DataManifest, RejectedImage, labels_file, mirror_keeps_label
from data.preparing.color_statistics import color_statistics
from data.preparing.conflicts import find_dropped
from data.preparing.regroup import regroup
from data.preparing.shard import Dropped, Part, Plan, prepare_part, read_part
from data.preparing.workers import map_files
from data.quality.checks import inspect
from data.quality.decisions import DECISIONS_FILE, Decided, decide, read_decisions
from data.quality.findings import QUALITY_FILE, QualityReport, refuse_errors
from data.quality.near_duplicates import find_lookalikes
from data.quality.thumbnails import THUMBNAILS_FILE, make_thumbnails
from data.splits import SPLITS, Split
from data.stages import read_params, run_stage

PREPARED = Path("data/prepared")
PARTS = Path("outputs/prepare-parts")
INDEX_FILE = "index.parquet"

OTHER_SPLIT = "or set another data.split_seed, or data.group_near_duplicates=false"

Counts = dict[Split, Counter[str]]


def prepare(config: DataConfig, raw: Path, prepared: Path, parts: Path, decisions: Path | None = None) -> DataManifest:
    """Decode, resize, crop and split all images of `raw` into `prepared`, on all cores of this machine or of a cluster.

    Finished parts of earlier runs are kept. The manifest is written last. `decisions` is the file with decisions by
    people about single images.

    Raises:
        UserError: `raw` is incomplete, a class has fewer than two usable images, a split has none, an image is under
            two labels or in two splits, or a decision is invalid.

    """
    shards = raw_shards(raw)
    unread = json.loads((raw / REJECTED_FILE).read_text(encoding="utf-8"))
    prepared.mkdir(parents=True, exist_ok=True)
    parts.mkdir(parents=True, exist_ok=True)
    (prepared / MANIFEST_FILE).unlink(missing_ok=True)
    decided = decide(read_decisions(decisions), shards, decisions) if decisions else Decided()
    given = {shard.stem: read_columns(shard, ["origin", "label", "split"]) for shard in shards}
    missing = _missing_splits(given.values())
    plan = Plan(config=config, missing=missing, dropped=_dropped(shards, config, missing, decided))
    done = _prepare_parts(shards, plan, prepared, parts, num_images=sum(map(len, given.values())))
    gc.freeze()  # keeps the garbage collector from scanning the rows of all images again and again
    lookalikes = find_lookalikes(done, prepared, config.size)
    done = regroup(done, lookalikes.groups if config.group_near_duplicates else [], plan, prepared, parts)
    _remove_stale(done, prepared, parts)
    done = [decided.relabel(part) for part in done]
    unusable = [RejectedImage(**row) for row in unread]
    report = inspect(plan, done, unusable, lookalikes, decided)
    _write_quality(report, config, raw, prepared)
    counts = _count(done)
    _check_classes(_labels(given, decided), done, counts)
    _check_splits(plan, counts)
    refuse_errors(report, prepared)
    manifest = _manifest(config, done, counts, unusable)
    _write(manifest, done, prepared)
    return manifest


def _prepare_parts(shards: list[Path], plan: Plan, prepared: Path, parts: Path, *, num_images: int) -> list[Part]:
    done = []
    # On another machine, a relative path would be wrong.
    shards, folders = [shard.absolute() for shard in shards], [prepared.absolute(), parts.absolute()]
    work = partial(prepare_part, plan=plan, prepared=folders[0], parts=folders[1])
    records = map_files(work, shards, scheduler=plan.config.scheduler, shared=folders)
    try:
        with closing(records), tqdm(total=num_images, unit="image", desc="prepare", disable=None) as progress:
            for record in records:
                part = read_part(record)
                done.append(part)
                progress.update(part.num_images + len(part.rejected))
    finally:
        remove_unfinished(prepared)
        remove_unfinished(parts)
    return sorted(done, key=lambda part: part.name)


def _dropped(shards: list[Path], config: DataConfig, missing: frozenset[Split], decided: Decided) -> Dropped:
    """Return the images to leave out: images that people dropped, and conflicts if `data.on_conflict` is drop."""
    conflicts = find_dropped(shards, config, missing, decided) if config.on_conflict == "drop" else {}
    stems = sorted(conflicts.keys() | decided.dropped.keys())
    return {stem: conflicts.get(stem, {}) | decided.dropped.get(stem, {}) for stem in stems}


def _missing_splits(given: Iterable[pa.Table]) -> frozenset[Split]:
    """Return the splits that the user has not made, which are drawn from the training images."""
    splits = {split for table in given for split in table["split"].unique().to_pylist()}
    return frozenset(split for split in SPLITS if split not in splits and split != "train")


def _count(parts: list[Part]) -> Counts:
    """Count the usable images of each class in each split."""
    counts: Counts = {split: Counter() for split in SPLITS}
    for part in parts:
        for split, rows in part.rows.items():
            counts[split].update(row.label for row in rows)
    return counts


def _labels(given: dict[str, pa.Table], decided: Decided) -> list[tuple[str, str]]:
    """Return origin and label of each image that people have not dropped."""
    rows = (
        (stem, origin, label)
        for stem, table in given.items()
        for origin, label in zip(table["origin"].to_pylist(), table["label"].to_pylist(), strict=True)
    )
    decisions = ((origin, decided.label_of(stem, origin, label)) for stem, origin, label in rows)
    return [(origin, label) for origin, label in decisions if label is not None]


def _check_classes(labels: list[tuple[str, str]], parts: list[Part], counts: Counts) -> None:
    remedy = "add images of it, or remove the class"
    given = Counter(label for _, label in labels)
    if len(given) < 2:
        raise UserError(f"{DECISIONS_FILE} leaves fewer than two classes: a classifier needs two or more")
    for name, num_given in sorted(given.items()):
        num_images = sum(counts[split][name] for split in SPLITS)
        if num_images == 0:
            reason = _first_reason(name, labels, parts)
            raise UserError(f"class {name!r} has no usable image among {num_given}, the first is {reason}: {remedy}")
        if num_images == 1:
            raise UserError(f"class {name!r} has one usable image, two are needed: {remedy}")
        if not counts["train"][name]:
            raise UserError(
                f"class {name!r} has {num_images} images, none of them to train on: {remedy}, {OTHER_SPLIT}"
            )


def _first_reason(name: str, labels: list[tuple[str, str]], parts: list[Part]) -> str:
    reasons = {image.path: image.reason for part in parts for image in part.rejected}
    origin = next(origin for origin, label in labels if label == name)
    return f"{origin!r} ({reasons[origin]})"


def _check_splits(plan: Plan, counts: Counts) -> None:
    for split, in_split in counts.items():
        if not in_split and split in plan.missing:
            raise UserError(
                f"no image falls into the {split} split: add images, raise data.{split}_fraction, {OTHER_SPLIT}"
            )
        if not in_split:
            raise UserError(f"none of the images in the {split} folder can be used: mend them, or remove the folder")


def _manifest(config: DataConfig, parts: list[Part], counts: Counts, unread: list[RejectedImage]) -> DataManifest:
    classes = sorted(set().union(*counts.values()))
    rejected = [*unread, *(image for part in parts for image in part.rejected)]
    return DataManifest(
        source=config.source,
        mirror_keeps_label=mirror_keeps_label(config.source),
        size=config.size,
        max_pixels=config.max_pixels,
        classes=tuple(classes),
        splits={split: {name: counts[split][name] for name in classes} for split in SPLITS},
        color=color_statistics(part.color for part in parts),
        rejected=tuple(sorted(rejected, key=lambda image: image.path)),
        shards=tuple(shard for split in SPLITS for part in parts for shard in part.shards if shard.split == split),
    )


def _write(manifest: DataManifest, parts: list[Part], prepared: Path) -> None:
    """Write labels and index in the order of the shards, then the manifest."""
    label_of = {name: index for index, name in enumerate(manifest.classes)}
    tables = []
    for split in SPLITS:
        rows = [row for part in parts for row in part.rows.get(split, ())]
        _save(prepared / labels_file(split), np.array([label_of[row.label] for row in rows], dtype=np.int64))
        columns = {name: [getattr(row, name) for row in rows] for name in ("label", "origin", "sha256")}
        columns = {"split": [split] * len(rows), **columns}
        tables.append(pa.table({name: column(values) for name, values in columns.items()}))
    with whole_file(prepared / INDEX_FILE) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")
    with whole_file(prepared / MANIFEST_FILE) as temporary:
        temporary.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def _write_quality(report: QualityReport, config: DataConfig, raw: Path, prepared: Path) -> None:
    report, pictures = make_thumbnails(report, raw, config)
    _save(prepared / THUMBNAILS_FILE, pictures)
    with whole_file(prepared / QUALITY_FILE) as temporary:
        temporary.write_text(report.model_dump_json(indent=1), encoding="utf-8")


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    content = io.BytesIO()
    np.save(content, array)  # not to the file, because `np.save` does not report a full disk
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _remove_stale(done: list[Part], prepared: Path, parts: Path) -> None:
    """Remove files of an earlier configuration or source."""
    wanted = {shard.name for part in done for shard in part.shards} | {f"{part.name}.json" for part in done}
    for path in [*prepared.glob("*.npy"), *parts.glob("*.json")]:
        if path.name not in wanted:
            path.unlink()


def main() -> None:
    """Run the stage with the parameters that DVC tracks."""
    prepare(DataConfig.model_validate(read_params("prepare")), RAW, PREPARED, PARTS, DECISIONS_FILE)


if __name__ == "__main__":
    run_stage(main)
