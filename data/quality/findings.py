"""The report on the quality of a data set: kinds of faults, and the images that have them."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from core.errors import UserError
from data.manifest import Model
from data.quality.decisions import DECISIONS_FILE
from data.splits import Split

QUALITY_FILE = "quality.json"

NUM_EXAMPLES = 3
"""Groups that a message names."""

Severity = Literal["error", "warning", "note"]


class Evidence(Model):
    """One image of a finding."""

    origin: str
    note: str = ""
    sha256: str | None = None
    label: str | None = None
    split: Split | None = None
    is_drawn: bool = False
    """the split was drawn, and is not the user's"""
    likely: str | None = None
    """label that the image seems to belong to, where it is not the given one"""
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
    """Name label and split as the user knows them: a split that was drawn only where it matters."""
    if not image.is_drawn:
        return f"{image.label}, {image.split}"
    return f"{image.label}, drawn for {image.split}" if finding.kind == "leakage" else f"{image.label}"
