"""Runs that may go: those that registered no model and that nobody asks for any more."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.entities import Run, ViewType

from models.tracking.connection import asking
from models.tracking.runs import DATA_VERSION, Tracking

CLEANED = "convoy.cleaned"
"""Tag of a run that was deleted because of its age, and not by a person who may want it back."""
PAGE = 1000


@dataclass(frozen=True)
class OldRun:
    """A run that may go."""

    run_id: str
    ended: float
    """seconds since 1970"""
    artifacts: Path | None
    """its files; None where a server keeps them"""


def registered_runs(tracking: Tracking) -> frozenset[str]:
    """Give the runs that have registered a version of any model."""
    with asking(tracking.uri):
        found, token = set[str](), None
        while True:
            page = tracking.client.search_model_versions(max_results=PAGE, page_token=token)
            found |= {version.run_id for version in page if version.run_id}
            token = page.token
            if not token:
                return frozenset(found)


def aliased_runs(tracking: Tracking) -> frozenset[str]:
    """Give the runs whose models have an alias, such as champion."""
    with asking(tracking.uri):
        models = tracking.client.search_registered_models(max_results=PAGE)
        versions = [(model.name, version) for model in models for version in model.aliases.values()]
        return frozenset(tracking.client.get_model_version(*version).run_id for version in versions)


def old_runs(tracking: Tracking, before: float, data_version: str | None, keep: frozenset[str]) -> list[OldRun]:
    """Give the runs that ended before a time in seconds since 1970, but for those to keep.

    Runs of today's data version stay: without them, the next command would train again. A run stays that another one
    that stays names as its parent.
    """
    with asking(tracking.uri):
        runs = list(_search(tracking, ViewType.ACTIVE_ONLY))
        old = [run for run in runs if _may_go(run, before, data_version, keep)]
        ids = {run.info.run_id for run in old}
        parents = {run.data.tags.get("mlflow.parentRunId") for run in runs if run.info.run_id not in ids}
        old = [run for run in old if run.info.run_id not in parents]
        left = (run for run in _search(tracking, ViewType.DELETED_ONLY) if CLEANED in run.data.tags)
        half_removed = [run for run in map(_as_old, left) if run.artifacts and run.artifacts.exists()]
    return [*map(_as_old, old), *half_removed]


def delete_run(tracking: Tracking, run_id: str) -> None:
    """Delete a run in MLflow, which keeps its row and can restore it until `mlflow gc`."""
    with asking(tracking.uri):
        if tracking.client.get_run(run_id).info.lifecycle_stage == "active":
            tracking.client.set_tag(run_id, CLEANED, "true")
            tracking.client.delete_run(run_id)


def _search(tracking: Tracking, view: int) -> Iterator[Run]:
    token = None
    while True:
        page = tracking.client.search_runs(
            [tracking.experiment_id], run_view_type=view, max_results=PAGE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _may_go(run: Run, before: float, data_version: str | None, keep: frozenset[str]) -> bool:
    has_ended = run.info.end_time is not None and run.info.status not in ("RUNNING", "SCHEDULED")
    is_today = data_version is not None and run.data.tags.get(DATA_VERSION) == data_version
    return has_ended and run.info.end_time < before * 1000 and not is_today and run.info.run_id not in keep


def _as_old(run: Run) -> OldRun:
    uri = urlsplit(run.info.artifact_uri or "")
    folder = Path(unquote(uri.path)) if uri.scheme in ("", "file") and uri.path else None
    return OldRun(run.info.run_id, (run.info.end_time or 0) / 1000, folder)
