"""Stage `prepare`: from `data/raw` to arrays that are memory-mapped and never decoded again."""

import io
import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data.color import color_statistics
from data.config import DataConfig
from data.errors import UserError
from data.ingest import RAW, REJECTED_FILE, raw_shards
from data.manifest import MANIFEST_FILE, DataManifest, RejectedImage, labels_file
from data.part import Part, Plan, prepare_part
from data.sources import SOURCES, SPLITS, Split
from data.stage import read_params, remove_unfinished, run_stage, whole_file
from data.workers import map_files

PREPARED = Path("data/prepared")
PARTS = Path("outputs/prepare-parts")
INDEX_FILE = "index.parquet"


def prepare(config: DataConfig, raw: Path, prepared: Path, parts: Path) -> DataManifest:
    """Decode, resize, crop and split all images of `raw` into `prepared`, on all cores.

    Parts that an earlier run has finished are kept; the manifest is written last.

    Raises:
        UserError: `raw` is incomplete, a class has fewer than two usable images, or a split has none.

    """
    shards = raw_shards(raw)
    unread = json.loads((raw / REJECTED_FILE).read_text(encoding="utf-8"))
    prepared.mkdir(parents=True, exist_ok=True)
    parts.mkdir(parents=True, exist_ok=True)
    (prepared / MANIFEST_FILE).unlink(missing_ok=True)
    given = pa.concat_tables(pq.read_table(shard, columns=["origin", "label", "split"]) for shard in shards)
    plan = Plan(config=config, missing=_missing_splits(given))
    done = []
    try:
        with tqdm(total=len(given), unit="image", desc="prepare", disable=None) as progress:
            for part in map_files(partial(prepare_part, plan=plan, prepared=prepared, parts=parts), shards):
                done.append(part)
                progress.update(part.num_images + len(part.rejected))
    finally:
        remove_unfinished(prepared)
        remove_unfinished(parts)
    _check_classes(given, done)
    _check_splits(plan, done)
    _remove_stale(done, prepared, parts)
    manifest = _manifest(config, done, [RejectedImage(**row) for row in unread])
    _write(manifest, done, prepared)
    return manifest


def _missing_splits(given: pa.Table) -> frozenset[Split]:
    """Splits that the user has not made, to be taken from the training images."""
    splits = set(given["split"].unique().to_pylist())
    return frozenset(split for split in SPLITS if split not in splits and split != "train")


def _count(parts: list[Part]) -> dict[Split, Counter[str]]:
    """Count the usable images of each class in each split."""
    counts: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
    for part in parts:
        for split, rows in part.rows.items():
            counts[split].update(row.label for row in rows)
    return counts


def _check_classes(given: pa.Table, parts: list[Part]) -> None:
    counts = _count(parts)
    remedy = "add images of it, or remove the class"
    for name, num_given in sorted(Counter(given["label"].to_pylist()).items()):
        num_images = sum(counts[split][name] for split in SPLITS)
        if num_images == 0:
            reason = _first_reason(name, given, parts)
            raise UserError(f"class {name!r} has no usable image among {num_given}, the first is {reason}: {remedy}")
        if num_images == 1:
            raise UserError(f"class {name!r} has one usable image, two are needed: {remedy}")
        if not counts["train"][name]:
            raise UserError(
                f"class {name!r} has {num_images} images, none of them to train on: {remedy}, "
                "or set another data.split_seed"
            )


def _first_reason(name: str, given: pa.Table, parts: list[Part]) -> str:
    reasons = {image.path: image.reason for part in parts for image in part.rejected}
    pairs = zip(given["origin"].to_pylist(), given["label"].to_pylist(), strict=True)
    origin = next(origin for origin, label in pairs if label == name)
    return f"{origin!r} ({reasons[origin]})"


def _check_splits(plan: Plan, parts: list[Part]) -> None:
    for split, counts in _count(parts).items():
        if not counts and split in plan.missing:
            raise UserError(
                f"no image falls into the {split} split: add images, raise data.{split}_fraction, "
                "or set another data.split_seed"
            )
        if not counts:
            raise UserError(f"none of the images in the {split} folder can be used: mend them, or remove the folder")


def _manifest(config: DataConfig, parts: list[Part], unread: list[RejectedImage]) -> DataManifest:
    counts = _count(parts)
    classes = sorted(set().union(*counts.values()))
    rejected = [*unread, *(image for part in parts for image in part.rejected)]
    return DataManifest(
        source=config.source,
        mirror_keeps_label=SOURCES[config.source].mirror_keeps_label,
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
    rows = [(split, row) for split in SPLITS for part in parts for row in part.rows.get(split, ())]
    for split in SPLITS:
        # Not `np.save` to the file: where the disk is full, it does not say so.
        labels = io.BytesIO()
        np.save(labels, np.array([label_of[row.label] for in_split, row in rows if in_split == split], dtype=np.int64))
        with whole_file(prepared / labels_file(split)) as temporary:
            temporary.write_bytes(labels.getvalue())
    index = [{"split": split, "label": row.label, "origin": row.origin, "sha256": row.sha256} for split, row in rows]
    with whole_file(prepared / INDEX_FILE) as temporary:
        pq.write_table(pa.Table.from_pylist(index), temporary, compression="zstd")
    with whole_file(prepared / MANIFEST_FILE) as temporary:
        temporary.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def _remove_stale(done: list[Part], prepared: Path, parts: Path) -> None:
    """Remove what an earlier configuration or source has left."""
    wanted = {shard.name for part in done for shard in part.shards} | {f"{part.name}.json" for part in done}
    for path in [*prepared.glob("*.npy"), *parts.glob("*.json")]:
        if path.name not in wanted:
            path.unlink()


def main() -> None:
    """Run the stage with the parameters that DVC tracks."""
    prepare(DataConfig.model_validate(read_params("prepare")), RAW, PREPARED, PARTS)


if __name__ == "__main__":
    run_stage(main)
