"""What is wrong with the data, found before anything trains on them: checks across all images of a data set."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from data.config import DataConfig
from data.describe import TRAITS
from data.errors import UserError
from data.lookalikes import Lookalikes
from data.manifest import Model, RejectedImage
from data.part import Part, Plan, Row
from data.sources import SPLITS, Split

QUALITY_FILE = "quality.json"

MAX_LISTED = 1000
"""Of what is no error, so many groups are listed; of errors, all."""
NUM_EXAMPLES = 3
"""Groups that a message names."""

Severity = Literal["error", "warning", "note"]


class Evidence(Model):
    """One image of a finding."""

    origin: str
    note: str = ""
    label: str | None = None
    split: Split | None = None
    is_drawn: bool = False
    """the split was drawn, and is not the user's"""
    shard: str | None = None
    """stem of the file in data/raw that holds it"""


class Finding(Model):
    """One kind of fault, and the images that have it: each by itself, or in groups that belong together."""

    kind: str
    severity: Severity
    summary: str
    count: int
    """of groups; where these are more than are listed, of all"""
    groups: tuple[tuple[Evidence, ...], ...] = ()


class QualityReport(Model):
    """All findings on one data set, the gravest first."""

    classes: dict[Split, dict[str, int]]
    """images of each class in each split"""
    handled: dict[str, int]
    """usable images that many decoders get wrong, by trait"""
    findings: tuple[Finding, ...]
    thumbnails: tuple[str, ...] = ()
    """origins of the images in `quality-thumbnails.npy`, in its order"""

    def of(self, severity: Severity) -> list[Finding]:
        """Findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]


class Seen(NamedTuple):
    """An image that can be decoded."""

    row: Row
    split: Split
    shard: str
    is_kept: bool
    """and not dropped"""
    is_drawn: bool
    """the split was drawn, and is not the user's"""
    moved_from: Split | None
    """the split that was drawn, where the image follows others into another one"""


def inspect(
    plan: Plan, parts: Sequence[Part], unread: Sequence[RejectedImage], lookalikes: Lookalikes
) -> QualityReport:
    """Look at all images together.

    Args:
        plan: the limits of what is reported, and which splits are drawn.
        parts: what became of the images in `data/raw`.
        unread: what the source passed over.
        lookalikes: which of the images look alike.

    """
    config, seen = plan.config, list(_seen(parts, plan.drawn_splits))
    kept = [image for image in seen if image.is_kept]
    classes = _classes(kept)
    traits = Counter(name for image in kept for name in image.row.traits)
    findings = [
        *_of_copies(seen, config),
        *_of_rejected(parts, unread),
        *_of_shapes(kept, config),
        *_of_lookalikes(kept, lookalikes),
        *_of_balance(classes["train"], config),
    ]
    order: tuple[Severity, ...] = ("error", "warning", "note")
    return QualityReport(
        classes=classes,
        handled={name: traits[name] for name in TRAITS},
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.severity))),
    )


def read_quality(prepared: Path) -> QualityReport:
    """Read the report of a prepared folder, or of one that was refused.

    Raises:
        UserError: there is none.

    """
    path = prepared / QUALITY_FILE
    try:
        return QualityReport.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        raise UserError(f"{path} is missing or damaged: prepare the images with `convoy data prepare`") from None


def refuse_errors(report: QualityReport, prepared: Path) -> None:
    """Let nobody train on data with errors.

    Raises:
        UserError: there are; names some of the images and where all are listed.

    """
    if errors := report.of("error"):
        raise UserError(
            f"{'; '.join(_with_examples(finding) for finding in errors)}: mend the data ({prepared / QUALITY_FILE} "
            "lists all, `convoy data report --html FILE` shows them), or drop them: --set data.on_conflict=drop",
            exit_code=1,
        )


def _with_examples(finding: Finding) -> str:
    examples = [
        " = ".join(f"{image.origin!r} ({_place(image, finding)})" for image in group)
        for group in finding.groups[:NUM_EXAMPLES]
    ]
    return f"{finding.summary}, such as {', '.join(examples)}"


def _place(image: Evidence, finding: Finding) -> str:
    """Name label and split as the user knows them: a split that was drawn only where it matters."""
    if not image.is_drawn:
        return f"{image.label}, {image.split}"
    return f"{image.label}, drawn for {image.split}" if finding.kind == "leakage" else f"{image.label}"


def _seen(parts: Iterable[Part], drawn: Collection[Split]) -> Iterator[Seen]:
    for part in parts:
        for is_kept, splits in ((True, part.rows), (False, part.dropped)):
            for split, rows in splits.items():
                place = (split, part.name, is_kept, split in drawn)
                yield from (Seen(row, *place, part.moved.get(row.origin)) for row in rows)


def _classes(kept: Sequence[Seen]) -> dict[Split, dict[str, int]]:
    counts = Counter((image.split, image.row.label) for image in kept)
    names = sorted({image.row.label for image in kept})
    return {split: {name: counts[split, name] for name in names} for split in SPLITS}


def _finding(kind: str, severity: Severity, what: str, groups: Sequence[Sequence[Evidence]]) -> Iterator[Finding]:
    """Make a finding, where there is anything; `what` says it of one group or of several, as in `image[s]`."""
    if not groups:
        return
    ordered = sorted(
        (tuple(sorted(group, key=lambda image: image.origin)) for group in groups), key=lambda group: group[0].origin
    )
    listed = ordered if severity == "error" else ordered[:MAX_LISTED]
    words = what.replace("[s]", "" if len(groups) == 1 else "s")
    yield Finding(
        kind=kind, severity=severity, summary=f"{len(groups):,} {words}", count=len(groups), groups=tuple(listed)
    )


def _evidence(image: Seen, note: str = "") -> Evidence:
    return Evidence(
        origin=image.row.origin,
        note=note or ("" if image.is_kept else "dropped"),
        label=image.row.label,
        split=image.split,
        is_drawn=image.is_drawn,
        shard=image.shard,
    )


def _of_copies(seen: Sequence[Seen], config: DataConfig) -> Iterator[Finding]:
    """Images whose bytes are there more than once."""
    counts = Counter(image.row.sha256 for image in seen)
    groups: dict[str, list[Seen]] = {}
    for image in seen:
        if counts[image.row.sha256] > 1:
            groups.setdefault(image.row.sha256, []).append(image)
    conflicts, leaks, others = [], [], []
    for group in groups.values():
        evidence = [_evidence(image) for image in group]
        if in_two_labels := len({image.row.label for image in group}) > 1:
            conflicts.append(evidence)
        if in_two_splits := len({image.split for image in group}) > 1:
            leaks.append(evidence)
        if not in_two_labels and not in_two_splits:
            others.append(evidence)
    fails = config.on_conflict == "fail"
    severity: Severity = "error" if fails else "warning"
    dropped = ("", "") if fails else (", all copies dropped", ", one split keeps it")
    yield from _finding("conflicting_labels", severity, f"image[s] under more than one label{dropped[0]}", conflicts)
    yield from _finding("leakage", severity, f"image[s] in more than one split{dropped[1]}", leaks)
    yield from _finding("exact_duplicates", "note", "image[s] more than once in the same split and class", others)


def _of_rejected(parts: Sequence[Part], unread: Sequence[RejectedImage]) -> Iterator[Finding]:
    dropped = {row.origin for part in parts for rows in part.dropped.values() for row in rows}
    broken = [
        [Evidence(origin=image.path, note=image.reason, shard=part.name)]
        for part in parts
        for image in part.rejected
        if image.path not in dropped
    ]
    yield from _finding("undecodable", "warning", "file[s] that cannot be decoded", broken)
    passed_over = [[Evidence(origin=image.path, note=image.reason)] for image in unread]
    yield from _finding("passed_over", "warning", "file[s] passed over by the source", passed_over)


def _of_shapes(kept: Sequence[Seen], config: DataConfig) -> Iterator[Finding]:
    small, long = [], []
    for image in kept:
        width, height = image.row.width, image.row.height
        if min(width, height) < config.min_side:
            small.append([_with_size(image)])
        if max(width, height) > config.max_aspect_ratio * min(width, height):
            long.append([_with_size(image)])
    what = f"image[s] with a shorter side of fewer than {config.min_side} pixels"
    yield from _finding("too_small", "warning", what, small)
    what = f"image[s] with a longer side of more than {config.max_aspect_ratio:g} times the shorter"
    yield from _finding("extreme_aspect", "warning", what, long)


def _with_size(image: Seen) -> Evidence:
    return _evidence(image, f"{image.row.width} x {image.row.height} pixels")


def _of_lookalikes(kept: Sequence[Seen], lookalikes: Lookalikes) -> Iterator[Finding]:
    """Images that look alike, each of equal bytes taken once."""
    members = {sha256 for group in lookalikes.groups for sha256 in group}
    by_bytes = {image.row.sha256: image for image in reversed(kept) if image.row.sha256 in members}
    leaks, conflicts, moved, others = [], [], [], []
    for sha256s in lookalikes.groups:
        group = [by_bytes[sha256] for sha256 in sha256s]
        evidence = [_evidence(image) for image in group]
        if any(image.moved_from for image in group):
            moved.append([_evidence(image, f"drawn for {image.moved_from or image.split}") for image in group])
        if in_two_splits := len({image.split for image in group}) > 1:
            leaks.append(evidence)
        if in_two_labels := len({image.row.label for image in group}) > 1:
            conflicts.append(evidence)
        if not in_two_splits and not in_two_labels:
            others.append(evidence)
    yield from _finding("near_leakage", "warning", "group[s] of images that look alike, in more than one split", leaks)
    what = "group[s] of images that look alike, under more than one label"
    yield from _finding("near_conflicts", "warning", what, conflicts)
    what = "group[s] of images that look alike, drawn for several splits and put into one"
    yield from _finding("near_moved", "note", what, moved)
    if lookalikes.num_unchecked:
        summary = f"up to {lookalikes.num_unchecked:,} pairs of images may look alike and were not compared"
        yield Finding(kind="near_unchecked", severity="warning", summary=summary, count=lookalikes.num_unchecked)
    what = "group[s] of images that look alike in the same split and class"
    yield from _finding("near_duplicates", "note", what, others)


def _of_balance(counts: dict[str, int], config: DataConfig) -> Iterator[Finding]:
    """Compare the largest class with the smallest, of those that there is anything to train on."""
    ordered = sorted((count, name) for name, count in counts.items() if count)
    if not ordered or ordered[-1][0] <= config.max_imbalance * ordered[0][0]:
        return
    (fewest, rare), (most, common) = ordered[0], ordered[-1]
    summary = f"class {common!r} has {most:,} training images, class {rare!r} {fewest:,}: {most / fewest:.1f} to 1"
    yield Finding(kind="imbalance", severity="warning", summary=summary, count=1)
