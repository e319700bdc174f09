from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data.manifest import DataManifest, read_data_manifest
from data.preparing.stage import INDEX_FILE
from data.quality.findings import read_quality
from data.splits import SPLITS

MAX_LISTED = 100


def data_report(prepared: Path) -> dict[str, Any]:
    """Contents of the prepared data, and rejected images, ready for JSON."""
    manifest, quality = read_data_manifest(prepared), read_quality(prepared)
    classes = {name: sum(manifest.splits[split][name] for split in SPLITS) for name in manifest.classes}
    return {
        "num_images": manifest.num_images,
        "num_rejected": len(manifest.rejected),
        "rejected": [image.model_dump() for image in manifest.rejected],
        "splits": {split: manifest.num_in(split) for split in SPLITS},
        "classes": classes,
        "num_duplicates": _num_duplicates(prepared),
        "quality": [finding.model_dump(exclude={"groups"}) for finding in quality.findings],
        "handled": {name: count for name, count in quality.handled.items() if count},
        "warnings": [*_warnings(manifest), *(finding.summary for finding in quality.of("warning"))],
    }


def _num_duplicates(prepared: Path) -> int:
    """Number of images that are copies of earlier images."""
    digests = pq.read_table(prepared / INDEX_FILE, columns=["sha256"])["sha256"].to_pylist()
    return len(digests) - len(Counter(digests))


def _warnings(manifest: DataManifest) -> list[str]:
    return [
        f"class '{name}' has no {split} images: its accuracy there is not measured"
        for split in ("val", "test")
        for name, count in manifest.splits[split].items()
        if count == 0
    ]


def as_markdown(report: dict[str, Any]) -> str:
    """Write a report as a short page in Markdown."""
    lines = [
        "| split | images |",
        "|---|---|",
        *(f"| {name} | {count:,} |" for name, count in report["splits"].items()),
    ]
    lines += [
        "",
        "| class | images |",
        "|---|---|",
        *(f"| {_cell(name)} | {count:,} |" for name, count in report["classes"].items()),
    ]
    lines += ["", f"{report['num_rejected']} rejected, {report['num_duplicates']} duplicates"]
    lines += [f"- `{image['path']!r}`: {image['reason']}" for image in report["rejected"][:MAX_LISTED]]
    if report["num_rejected"] > MAX_LISTED:
        lines.append(f"- and {report['num_rejected'] - MAX_LISTED:,} more: `convoy data report --json` lists all")
    lines += [f"- {finding['summary']}" for finding in report["quality"] if finding["severity"] == "note"]
    lines += [f"- {count:,} of form {name}, handled" for name, count in report["handled"].items()]
    return "\n".join([*lines, *(f"- warning: {warning}" for warning in report["warnings"])])


def _cell(name: str) -> str:
    """Escape a class name for a cell of a table."""
    return " ".join(name.split()).replace("|", "\\|")
