"""Puts images that look alike into one split, by moving images between the arrays of their raw shard.

Nothing is decoded again. The arrays of other shards are not touched.
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
"""Images of a part and their current places, by target split, in the order of the raw shard."""


def regroup(
    parts: Sequence[Part], groups: Sequence[Sequence[str]], plan: Plan, prepared: Path, records: Path
) -> list[Part]:
    """Put each group of images that look alike into one split, and every other image into its drawn split.

    Args:
        parts: prepared parts.
        groups: checksums (sha256) of images that look alike.
        plan: the plan by which splits are drawn.
        prepared: folder of the arrays.
        records: folder of the parts.

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
    """Choose the split of each image in a group: the split drawn for the group's smallest checksum.

    The splits therefore keep their shares, and depend only on the images. An added image moves only images that look
    like it. Images in the user's splits are ignored.
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
    """Return the images of a part by target split, and the drawn splits of moved images, by origin."""
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
    """Rewrite the arrays of the splits in `changed`."""
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
    """Yield the images in blocks, uint8 [N, S, S, 3]."""
    num_together = max(1, BLOCK_BYTES // (3 * size**2))
    for start in range(0, len(images), num_together):
        yield np.stack([arrays[image.split][image.position] for image in images[start : start + num_together]])
