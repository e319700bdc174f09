"""Checks across all images of a data set, before any training."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from data.config import DataConfig
from data.manifest import RejectedImage
from data.preparing.shard import Part, Plan, Row
from data.quality.decisions import DECISIONS_FILE, Decided
from data.quality.findings import Evidence, Finding, QualityReport, Severity
from data.quality.near_duplicates import Lookalikes
from data.quality.traits import TRAITS
from data.splits import SPLITS, Split

MAX_LISTED = 1000
"""Maximum number of listed groups of a warning or note. All groups of an error are listed."""


class Seen(NamedTuple):
    """Image that can be decoded."""

    row: Row
    split: Split
    shard: str
    is_kept: bool
    """False if the image was dropped"""
    is_drawn: bool
    """whether the split was drawn, and not chosen by the user"""
    moved_from: Split | None
    """drawn split of an image that was moved to the split of similar images; None if it was not moved"""


def inspect(
    plan: Plan,
    parts: Sequence[Part],
    unread: Sequence[RejectedImage],
    lookalikes: Lookalikes,
    decided: Decided,
) -> QualityReport:
    """Check all images together.

    Args:
        plan: the limits for reports, and the drawn splits.
        parts: the prepared parts of `data/raw`.
        unread: files that the source rejected.
        lookalikes: groups of images that look alike.
        decided: decisions by people. Images that were dropped or found right are not reported.

    """
    config, seen = plan.config, list(_seen(parts, plan.drawn_splits, decided))
    kept = [image for image in seen if image.is_kept]
    doubtful = [image for image in kept if image.row.sha256 not in decided.kept] if decided.kept else kept
    classes = _classes(kept)
    traits = Counter(name for image in kept for name in image.row.traits)
    findings = [
        *_of_copies(seen, config),
        *_of_decisions(decided),
        *_of_rejected(parts, unread, decided),
        *_of_shapes(doubtful, config),
        *_of_lookalikes(kept, lookalikes, decided),
        *_of_balance(classes["train"], config),
    ]
    order: tuple[Severity, ...] = ("error", "warning", "note")
    return QualityReport(
        classes=classes,
        handled={name: traits[name] for name in TRAITS},
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.severity))),
    )


def _seen(parts: Iterable[Part], drawn: Collection[Split], decided: Decided) -> Iterator[Seen]:
    for part in parts:
        gone = decided.dropped.get(part.name, {})
        for is_kept, splits in ((True, part.rows), (False, part.dropped)):
            for split, rows in splits.items():
                place = (split, part.name, is_kept, split in drawn)
                yield from (Seen(row, *place, part.moved.get(row.origin)) for row in rows if row.origin not in gone)


def _classes(kept: Sequence[Seen]) -> dict[Split, dict[str, int]]:
    counts = Counter((image.split, image.row.label) for image in kept)
    names = sorted({image.row.label for image in kept})
    return {split: {name: counts[split, name] for name in names} for split in SPLITS}


def _finding(kind: str, severity: Severity, what: str, groups: Sequence[Sequence[Evidence]]) -> Iterator[Finding]:
    """Make a finding, unless there are no groups. In `what`, `[s]` marks the plural, as in `image[s]`."""
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
        sha256=image.row.sha256,
        label=image.row.label,
        split=image.split,
        is_drawn=image.is_drawn,
        shard=image.shard,
    )


def _of_copies(seen: Sequence[Seen], config: DataConfig) -> Iterator[Finding]:
    """Find images with equal bytes."""
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


def _of_decisions(decided: Decided) -> Iterator[Finding]:
    """Count the decisions that apply, and find decisions about no image."""
    if decided.num_applied:
        words = "decision applies" if decided.num_applied == 1 else "decisions apply"
        summary = f"{decided.num_applied:,} {words} ({DECISIONS_FILE})"
        yield Finding(kind="decisions", severity="note", summary=summary, count=decided.num_applied)
    unmatched = [
        [Evidence(origin=f"{DECISIONS_FILE}:{one.line}", note=f"{one.what}, {one.image or one.sha256}")]
        for one in decided.unmatched
    ]
    yield from _finding("unmatched_decisions", "warning", f"decision[s] without an image ({DECISIONS_FILE})", unmatched)


def _of_rejected(parts: Sequence[Part], unread: Sequence[RejectedImage], decided: Decided) -> Iterator[Finding]:
    dropped = {row.origin for part in parts for rows in part.dropped.values() for row in rows}
    dropped.update(origin for origins in decided.dropped.values() for origin in origins)
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


def _of_lookalikes(kept: Sequence[Seen], lookalikes: Lookalikes, decided: Decided) -> Iterator[Finding]:
    """Find images that look alike, with equal bytes counted once, except groups in which all images are found right."""
    members = {sha256 for group in lookalikes.groups for sha256 in group}
    by_bytes = {image.row.sha256: image for image in reversed(kept) if image.row.sha256 in members}
    leaks, conflicts, moved, others = [], [], [], []
    for sha256s in lookalikes.groups:
        if decided.kept.issuperset(sha256s):
            continue
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
    """Compare the largest class with the smallest class that has training images."""
    ordered = sorted((count, name) for name, count in counts.items() if count)
    if not ordered or ordered[-1][0] <= config.max_imbalance * ordered[0][0]:
        return
    (fewest, rare), (most, common) = ordered[0], ordered[-1]
    summary = f"class {common!r} has {most:,} training images, class {rare!r} {fewest:,}: {most / fewest:.1f} to 1"
    yield Finding(kind="imbalance", severity="warning", summary=summary, count=1)
