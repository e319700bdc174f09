"""Quality report of a data set: kinds of faults, and the images with each fault."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from core.errors import UserError
from data.manifest import Model
from data.quality.decisions import DECISIONS_FILE
from data.splits import Split

QUALITY_FILE = "quality.json"

NUM_EXAMPLES = 3
"""Number of groups that a message names."""

Severity = Literal["error", "warning", "note"]


class Evidence(Model):
    """Image of a finding."""

    origin: str
    note: str = ""
    sha256: str | None = None
    label: str | None = None
    split: Split | None = None
    is_drawn: bool = False
    """whether the split was drawn, and not chosen by the user"""
    likely: str | None = None
    """probable label, if it differs from the given label"""
    shard: str | None = None
    """stem of the image's file in data/raw"""


class Finding(Model):
    """One kind of fault, and groups of images with this fault. A group may be a single image."""

    kind: str
    severity: Severity
    summary: str
    count: int
    """number of all groups, of which only some may be listed"""
    groups: tuple[tuple[Evidence, ...], ...] = ()


class QualityReport(Model):
    """All findings on a data set, most severe first."""

    classes: dict[Split, dict[str, int]]
    """images of each class in each split"""
    handled: dict[str, int]
    """number of usable images that many decoders get wrong, by trait"""
    findings: tuple[Finding, ...]
    thumbnails: tuple[str, ...] = ()
    """origins of the images in `quality-thumbnails.npy`, in the order of the file"""

    def of(self, severity: Severity) -> list[Finding]:
        """Return the findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]


def read_quality(prepared: Path) -> QualityReport:
    """Read the report of a prepared folder. Refused data has a report, too.

    Raises:
        UserError: the report is missing or damaged.

    """
    path = prepared / QUALITY_FILE
    try:
        return QualityReport.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        raise UserError(f"{path} is missing or damaged: prepare the images with `convoy data prepare`") from None


def refuse_errors(report: QualityReport, prepared: Path) -> None:
    """Refuse data with errors.

    Raises:
        UserError: the report has errors. The message names some images, and the place of the full list.

    """
    if errors := report.of("error"):
        raise UserError(
            f"{'; '.join(_with_examples(finding) for finding in errors)}: mend the data ({prepared / QUALITY_FILE} "
            f"lists all, `convoy data report --html FILE` shows them), settle them in {DECISIONS_FILE}, or drop them: "
            "--set data.on_conflict=drop",
            exit_code=1,
        )


def _with_examples(finding: Finding) -> str:
    examples = [
        " = ".join(f"{image.origin!r} ({_place(image, finding)})" for image in group)
        for group in finding.groups[:NUM_EXAMPLES]
    ]
    return f"{finding.summary}, such as {', '.join(examples)}"


def _place(image: Evidence, finding: Finding) -> str:
    """Name label and split. A drawn split, which the user does not know, is named only for leakage."""
    if not image.is_drawn:
        return f"{image.label}, {image.split}"
    return f"{image.label}, drawn for {image.split}" if finding.kind == "leakage" else f"{image.label}"
