"""The report on quality as one page that needs nothing else: the pictures are part of it."""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from core.errors import UserError
from data.config import DataConfig
from data.images.decode import Pixels
from data.manifest import read_data_manifest
from data.quality import tick_boxes
from data.quality.findings import Evidence, Finding, QualityReport, read_quality
from data.quality.thumbnails import NUM_IN_GROUP, SIDE, THUMBNAILS_FILE, make_thumbnails, num_shown
from data.splits import SPLITS

NUM_CLASSES = 20
"""Where there are more classes, the largest and the smallest are shown, half of each."""
NUM_PLAIN = 100
"""Files without a picture are listed up to here."""

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

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5d6778; --line: #dde2ea; --paper: #fff; --card: #f6f8fb;
  --error: #b3261e; --warning: #8a5a00; --note: #33608c; --train: #4878a8; --val: #d9963a; --test: #6a9a58 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa5b8; --line: #333b49; --paper: #14181f;
  --card: #1c222c; --error: #ff8a80; --warning: #f0b849; --note: #8ab8e6 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1080px;
  margin: 0 auto; padding: 32px 24px 64px }
h1 { font-size: 26px; margin: 0 0 4px } h2 { font-size: 18px; margin: 40px 0 2px; scroll-margin-top: 16px }
p { margin: 0 } .soft { color: var(--soft) }
table { border-collapse: collapse; margin-top: 16px; width: 100% }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top }
td:has(.bar) { vertical-align: middle }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
a { color: inherit }
.error, .warning, .note { font-weight: 600 }
.error { color: var(--error) } .warning { color: var(--warning) } .note { color: var(--note) }
.groups { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 12px }
.group { display: flex; flex-wrap: wrap; gap: 8px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 12px }
figure { margin: 0; width: 104px; font-size: 12px; line-height: 1.4; overflow-wrap: anywhere }
figure img, .blank { display: block; width: 96px; height: 96px; border: 1px solid var(--line); border-radius: 4px;
  background: #fff; image-rendering: pixelated; margin-bottom: 4px }
.blank { background: repeating-linear-gradient(45deg, var(--card), var(--card) 6px, var(--line) 6px, var(--line) 7px) }
.label { font-weight: 600 }
.bar { display: flex; height: 12px; border-radius: 3px; overflow: hidden; min-width: 1px }
.bar i { display: block; height: 100% } .train { background: var(--train) } .val { background: var(--val) }
.test { background: var(--test) } .key { display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin: 0 4px 0 12px }
ul { font-size: 13px; margin: 12px 0 0; padding-left: 20px; columns: 420px; column-gap: 32px }
li { overflow-wrap: anywhere }
"""


def quality_page(prepared: Path, doubts: Finding | None = None, raw: Path | None = None) -> str:
    """Write the page of what `prepare` has found, whether it let the data pass or not.

    Args:
        prepared: the folder of the arrays.
        doubts: what `data.quality.label_errors` has found since then.
        raw: the folder of the raw shards, for the pictures of `doubts`.

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
    body = "".join(
        [
            _head(report),
            _summary(report),
            *(_section(finding, pictures) for finding in report.findings),
            _handled(report),
            _classes(report),
            tick_boxes.panel(list(report.classes["train"])),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Convoy: quality of the data</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{tick_boxes.STYLE}</style></head><body>{body}</body></html>\n"
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


def _head(report: QualityReport) -> str:
    counts = [sum(report.classes[split].values()) for split in SPLITS]
    splits = ", ".join(f"{split} {count:,}" for split, count in zip(SPLITS, counts, strict=True))
    num_classes = len(report.classes["train"])
    return (
        f'<h1>Quality of the data</h1><p class="soft">{sum(counts):,} images in {num_classes:,} classes ({splits})</p>'
    )


def _summary(report: QualityReport) -> str:
    if not report.findings:
        return "<p style='margin-top:16px'>Nothing was found.</p>"
    rows = "".join(
        f'<tr><td class="{finding.severity}">{finding.severity}</td>'
        f'<td><a href="#{finding.kind}">{escape(TITLES[finding.kind][0])}</a></td>'
        f"<td>{escape(finding.summary)}</td></tr>"
        for finding in report.findings
    )
    return f"<table>{rows}</table>"


def _section(finding: Finding, pictures: dict[str, str]) -> str:
    title, meaning = TITLES[finding.kind]
    head = (
        f'<h2 id="{finding.kind}"><span class="{finding.severity}">{finding.severity}</span> {escape(title)}</h2>'
        f'<p>{escape(finding.summary)}. <span class="soft">{escape(meaning)}</span></p>'
    )
    return head + _groups(finding, pictures) + _rest(finding)


def _groups(finding: Finding, pictures: dict[str, str]) -> str:
    chosen = finding.groups[: num_shown(finding.kind)]
    groups = [group for group in chosen if any(image.origin in pictures for image in group)]
    frames = "".join(f'<div class="group">{_figures(group, pictures, finding.kind)}</div>' for group in groups)
    return f'<div class="groups">{frames}</div>' if groups else ""


def _figures(group: Sequence[Evidence], pictures: dict[str, str], kind: str) -> str:
    figures = "".join(_figure(image, pictures, kind) for image in group[:NUM_IN_GROUP])
    more = len(group) - NUM_IN_GROUP
    return figures + (f'<figure class="soft">and {more:,} more</figure>' if more > 0 else "")


def _figure(image: Evidence, pictures: dict[str, str], kind: str) -> str:
    picture = pictures.get(image.origin)
    shown = (
        f'<img src="{picture}" width="{SIDE}" height="{SIDE}" alt="{escape(image.origin)}">'
        if picture
        else '<div class="blank"></div>'
    )
    split = f"drawn for {image.split}" if image.is_drawn else image.split or ""
    words = [f'<span class="label">{escape(image.label or "")}</span> <span class="soft">{split}</span>']
    words += [escape(image.note)] if image.note else []
    words += [f'<span class="soft">{escape(image.origin)}</span>']
    return f"<figure>{shown}{'<br>'.join(words)}{tick_boxes.tick(image, kind)}</figure>"


def _rest(finding: Finding) -> str:
    """List the files that have no picture, and say how many images are not shown."""
    plain = [group[0] for group in finding.groups if len(group) == 1 and group[0].label is None]
    items = "".join(
        f'<li>{escape(image.origin)}: <span class="soft">{escape(image.note)}</span></li>'
        for image in plain[:NUM_PLAIN]
    )
    shown = NUM_PLAIN if plain else num_shown(finding.kind)
    more = finding.count - shown
    rest = f'<p class="soft" style="margin-top:8px">and {more:,} more</p>' if finding.groups and more > 0 else ""
    return (f"<ul>{items}</ul>" if items else "") + rest


def _handled(report: QualityReport) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{count:,}</td></tr>'
        for name, count in report.handled.items()
        if count
    )
    if not rows:
        return ""
    return (
        '<h2>Handled</h2><p class="soft">Forms of images that many decoders get wrong; here they are decoded as every '
        'viewer shows them.</p><table style="max-width:320px"><tr><th>form</th><th class="number">images</th></tr>'
        f"{rows}</table>"
    )


def _classes(report: QualityReport) -> str:
    totals = {name: sum(report.classes[split][name] for split in SPLITS) for name in report.classes["train"]}
    names = sorted(totals, key=lambda name: -totals[name])
    half = NUM_CLASSES // 2
    chosen = names if len(names) <= NUM_CLASSES else names[:half] + names[-half:]
    left_out = len(names) - len(chosen)
    largest = max(totals.values(), default=1)
    rows = [_class_row(report, name, totals[name], largest) for name in chosen]
    if left_out:
        rows.insert(half, f'<tr><td class="soft" colspan="3">{left_out:,} classes between</td></tr>')
    keys = "".join(f'<span class="key {split}"></span>{split}' for split in SPLITS)
    return (
        f'<h2>Classes</h2><p class="soft">Images of each, by split:{keys}</p><table><tr><th>class</th>'
        f'<th class="number">images</th><th style="width:60%"></th></tr>{"".join(rows)}</table>'
    )


def _class_row(report: QualityReport, name: str, total: int, largest: int) -> str:
    bars = "".join(
        f'<i class="{split}" style="width:{100 * report.classes[split][name] / largest:.2f}%"'
        f' title="{split}: {report.classes[split][name]:,}"></i>'
        for split in SPLITS
    )
    return f'<tr><td>{escape(name)}</td><td class="number">{total:,}</td><td><div class="bar">{bars}</div></td></tr>'
