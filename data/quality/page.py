"""Quality report as a single page, with its pictures inside."""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.errors import UserError
from core.pages import render
from data.config import DataConfig
from data.images.decode import Pixels
from data.manifest import read_data_manifest
from data.quality.decisions import COLUMNS, DECISIONS_FILE, KEEP
from data.quality.findings import Finding, QualityReport, read_quality
from data.quality.thumbnails import NUM_IN_GROUP, SIDE, THUMBNAILS_FILE, make_thumbnails, num_shown
from data.splits import SPLITS

TEMPLATE = Path(__file__).with_suffix("") / "page.html.j2"
NUM_CLASSES = 20
"""Maximum number of shown classes. Of more classes, the page shows the largest and the smallest half each."""
NUM_PLAIN = 100
"""Maximum number of listed files without a picture."""

TITLES = {
    "wrong_labels": (
        "Probably wrong labels",
        "The worst first: what a classifier says that was not trained on the image. Keep what is right.",
    ),
    "conflicting_labels": ("One image, several labels", "Nobody can learn or measure which of the labels is right."),
    "leakage": ("One image, several splits", "What was trained on says nothing when it is measured on again."),
    "undecodable": ("Cannot be decoded", "Left out of all splits."),
    "passed_over": ("Passed over by the source", "Never read: see the reason of each."),
    "too_small": ("Too small", "Kept and enlarged; remove them, or lower data.min_side."),
    "extreme_aspect": ("Extreme aspect ratio", "Kept; but of a long image, only the centre square is seen."),
    "near_leakage": ("Alike, in several splits", "Kept. Copies that were scaled or compressed anew leak as others do."),
    "near_conflicts": ("Alike, with several labels", "Kept: copies, or classes that are hard to tell apart."),
    "near_moved": (
        "Alike, put into one split",
        "Kept. Their own draws differ; together, none of them is measured after another was trained on.",
    ),
    "near_unchecked": ("Not all compared", "Near duplicates among them may be in several splits."),
    "decisions": ("Decisions", "What you have decided about single images."),
    "unmatched_decisions": ("Decisions without an image", "The image has changed or is gone: remove the lines."),
    "imbalance": ("Class imbalance", "A rare class is learned late and counts for little in the overall accuracy."),
    "exact_duplicates": ("Exact duplicates", "Kept: same bytes, class and split. They count several times."),
    "near_duplicates": ("Near duplicates", "Kept: they look alike, in the same class and split."),
}

COPIES = ("conflicting_labels", "leakage", "exact_duplicates")
"""Findings whose images have equal bytes, so a decision must name the file."""
OFFERED = {"conflicting_labels": KEEP, "leakage": KEEP}
"""Default decision of a tick. For other findings, it is the likely label, or drop."""


def quality_page(prepared: Path, doubts: Finding | None = None, raw: Path | None = None) -> str:
    """Render the page of the findings of `prepare`, for accepted and refused data.

    Args:
        prepared: folder of the arrays.
        doubts: later findings of `data.quality.label_errors`.
        raw: folder of the raw shards, for the pictures of `doubts`.

    Raises:
        UserError: nothing has been prepared.

    """
    report = read_quality(prepared)
    pictures = dict(zip(report.thumbnails, _data_uris(_load(prepared / THUMBNAILS_FILE)), strict=True))
    if doubts and raw:
        alone = report.model_copy(update={"findings": (doubts,)})
        alone, drawn = make_thumbnails(alone, raw, DataConfig(max_pixels=read_data_manifest(prepared).max_pixels))
        pictures |= zip(alone.thumbnails, _data_uris(drawn), strict=True)
        report = report.model_copy(update={"findings": (doubts, *report.findings)})
    return render(
        TEMPLATE,
        report=report,
        pictures=pictures,
        sections=[_section(finding, pictures) for finding in report.findings],
        handled={name: count for name, count in report.handled.items() if count},
        **_classes(report),
        titles=TITLES,
        splits=SPLITS,
        side=SIDE,
        num_in_group=NUM_IN_GROUP,
        copies=COPIES,
        offered=OFFERED,
        columns=COLUMNS,
        decisions_file=DECISIONS_FILE,
    )


def _load(path: Path) -> Pixels:
    try:
        pictures: Pixels = np.load(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): prepare the images with `convoy data prepare`") from None
    return pictures


def _data_uris(pictures: Pixels) -> Iterator[str]:
    for picture in pictures:
        png = io.BytesIO()
        Image.fromarray(picture).save(png, "PNG")
        yield f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def _section(finding: Finding, pictures: dict[str, str]) -> dict[str, Any]:
    """Choose the groups with pictures and the files without pictures. Count the images that are not shown."""
    groups = finding.groups[: num_shown(finding.kind)]
    plain = [group[0] for group in finding.groups if len(group) == 1 and group[0].label is None]
    shown = NUM_PLAIN if plain else num_shown(finding.kind)
    return {
        "finding": finding,
        "groups": [group for group in groups if any(image.origin in pictures for image in group)],
        "plain": plain[:NUM_PLAIN],
        "num_more": finding.count - shown if finding.groups else 0,
    }


def _classes(report: QualityReport) -> dict[str, Any]:
    """Count the images of each class. Of many classes, choose the largest and smallest, with None between them."""
    totals = {name: sum(report.classes[split][name] for split in SPLITS) for name in report.classes["train"]}
    names = sorted(totals, key=lambda name: -totals[name])
    half = NUM_CLASSES // 2
    chosen: Sequence[str | None] = names if len(names) <= NUM_CLASSES else [*names[:half], None, *names[-half:]]
    return {"totals": totals, "chosen": chosen, "largest": max(totals.values(), default=1)}
