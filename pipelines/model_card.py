"""Model card of a version, made from its run, the prepared data, and `card.md`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.manifest import read_data_manifest
from data.versioning import data_version
from pipelines.config import Config
from pipelines.workspace import MODELS, PREPARED, ROOT, open_registry, open_tracking

if TYPE_CHECKING:
    from models.judging.card import Card
    from models.tracking.registry import ModelVersion

SAID = Path("card.md")
"""File of the project with the sections that a person writes."""


def hang_card(config: Config, version: "ModelVersion") -> "Card":
    """Make the card of a version and store it on its run: in the run's description, and as files."""
    from models.judging.card import cut
    from models.tracking.runs import MAX_NOTE

    card = make_card(config, version)
    log = open_tracking(config).log(version.run_id)
    log.describe(cut(card.as_note(), MAX_NOTE))
    log.text(card.as_markdown(), "model-card.md")
    log.page(card.as_html(), "model-card")
    return card


def make_card(config: Config, version: "ModelVersion") -> "Card":
    """Collect the content of a version's card."""
    from data.quality.report import data_report
    from models.exported.predictor import read_model_manifest
    from models.judging.card import Card, read_said

    tracking = open_tracking(config)
    run, log = tracking.get(version.run_id), tracking.log(version.run_id)
    kept = {name: _json(log.read(f"{name}.json")) for name in ("verdict", "comparison", "slices", "evaluation")}
    is_here = data_version(ROOT) == version.data_version
    # The outcome follows from the other fields.
    verdict = {name: value for name, value in (kept["verdict"] or {}).items() if name != "outcome"}
    return Card(
        manifest=read_model_manifest(open_registry(config).download(version, MODELS)),
        said=read_said(SAID),
        params=run.params,
        metrics=run.metrics,
        class_accuracy=(kept["evaluation"] or {}).get("class_accuracy", {}),
        source=read_data_manifest(PREPARED).source if is_here else run.params.get("data.source", "unknown"),
        data=data_report(PREPARED) if is_here else None,
        verdict=verdict or None,
        comparison=kept["comparison"],
        slices=kept["slices"] or (),
    )


def _json(text: str | None) -> Any:
    return json.loads(text) if text else None


def note_of_gaps() -> str:
    """Name the unwritten sections of the card; empty if there are none."""
    from models.judging.card import gaps, read_said

    missing = gaps(read_said(SAID))
    return f"the model card says nothing under {', '.join(map(repr, missing))}: write {SAID}" if missing else ""
