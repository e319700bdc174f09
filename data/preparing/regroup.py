"""Images that look alike share a split: those that do not are moved between the arrays of their raw shard.

Nothing is decoded again, and the arrays of a shard without such images are not touched.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from core.machine import num_cores
from data.images.decode import Pixels
from data.preparing.array_file import growing_array, map_array
from data.preparing.color_statistics import ColorCounter
from data.preparing.shard import BLOCK_BYTES, Part, Plan, make_shard, write_part
from data.quality.near_duplicates import Kept, kept_images
from data.splits import Split, split_of

Targets = dict[Split, list[Kept]]
"""The images of a part, where they are now, by the split that they belong into, each in the order of the raw shard."""


def regroup(
    parts: Sequence[Part], groups: Sequence[Sequence[str]], plan: Plan, prepared: Path, records: Path
) -> list[Part]:
    """Put each group of images that look alike into one split, and every other image into the split drawn for it.

    Args:
        parts: what became of the images.
        groups: checksums (sha256) of images that look alike.
        plan: how splits are drawn.
        prepared: the folder of the arrays.
        records: the folder where the parts are kept.

    """
    wanted = _wanted(parts, groups, plan)

    def moved(part: Part) -> Part:
        targets, drawn = _targets(part, wanted, plan)
        changed = {split for target, images in targets.items() for image in images if image.split != target
                   for split in (target, image.split)}  # fmt: skip
        if not changed:
            return part
        part = _rewrite(part, targets, changed, prepared, plan.config.size).model_copy(update={"moved": drawn})
        write_part(records / f"{part.name}.json", part)
        return part

    with ThreadPoolExecutor(num_cores()) as threads:
        return list(threads.map(moved, parts))


def _wanted(parts: Sequence[Part], groups: Sequence[Sequence[str]], plan: Plan) -> dict[str, Split]:
    """Choose the split of each image in a group: the one that is drawn for the group's smallest checksum.

    So the splits keep their shares and follow from the images alone, and an image that is added moves others only where
    it looks like them. Images that the user has put into a split have no say.
    """
    members = {sha256 for group in groups for sha256 in group}
    movable = {
        image.row.sha256
        for image in kept_images(parts)
        if image.row.sha256 in members and image.split in plan.drawn_splits
    }
    wanted: dict[str, Split] = {}
    for group in groups:
        if some := sorted(movable.intersection(group)):
            split = split_of(some[0], plan.config, given=None, missing=plan.missing)
            wanted |= dict.fromkeys(some, split)
    return wanted


def _targets(part: Part, wanted: Mapping[str, Split], plan: Plan) -> tuple[Targets, dict[str, Split]]:
    """Say where the images of a part belong, and for which of them, by origin, another split was drawn."""
    targets: Targets = {}
    drawn: dict[str, Split] = {}
    for image in kept_images([part]):
        own = target = part.moved.get(image.row.origin, image.split)
        if own in plan.drawn_splits:
            target = wanted.get(image.row.sha256, own)
        if target != own:
            drawn[image.row.origin] = own
        targets.setdefault(target, []).append(image)
    for images in targets.values():
        images.sort(key=lambda image: image.row.origin)
    return {split: targets[split] for split in sorted(targets)}, dict(sorted(drawn.items()))


def _rewrite(part: Part, targets: Targets, changed: set[Split], prepared: Path, size: int) -> Part:
    """Write the arrays of the splits in `changed` anew."""
    square = (size, size, 3)
    arrays = {shard.split: map_array(prepared / shard.name, square) for shard in part.shards}
    shards, color = {shard.split: shard for shard in part.shards}, ColorCounter()
    for split in changed & targets.keys():
        with growing_array(prepared / f"{split}-{part.name}.npy", square) as array:
            for pixels in _blocks(targets[split], arrays, size):
                array.append(pixels)
                if split == "train":
                    color.add(pixels)
        shards[split] = make_shard(split, part.name, array)
    return part.model_copy(
        update={
            "shards": tuple(shards[split] for split in targets),
            "rows": {split: tuple(image.row for image in images) for split, images in targets.items()},
            "color": color.sums if "train" in changed else part.color,
        }
    )


def _blocks(images: Sequence[Kept], arrays: Mapping[Split, Pixels], size: int) -> Iterator[Pixels]:
    """Copy images, uint8 [N, S, S, 3], some at a time."""
    num_together = max(1, BLOCK_BYTES // (3 * size**2))
    for start in range(0, len(images), num_together):
        yield np.stack([arrays[image.split][image.position] for image in images[start : start + num_together]])
