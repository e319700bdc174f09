"""Files of an unfinished training beside its checkpoints, and their use after its process has died."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from models.tracking.journal import Journal
from models.tracking.sender import Sender

if TYPE_CHECKING:
    from models.tracking.runs import Tracking

JOURNAL = ".metrics.jsonl"

_log = logging.getLogger("convoy")


def run_note(checkpoints: Path) -> Path:
    """Return the file with the id of the checkpoints' run."""
    return checkpoints.with_suffix(".run")


def journal_file(checkpoints: Path) -> Path:
    """Return the file with the run's metrics, which exists until all metrics have arrived in MLflow."""
    return checkpoints.with_suffix(JOURNAL)


def interrupted_run(tracking: "Tracking", checkpoints: Path) -> str | None:
    """Return the id of the run of an interrupted attempt, or None.

    Raises:
        UserError: MLflow does not answer.

    """
    note = run_note(checkpoints)
    if not note.is_file():
        return None
    run_id = note.read_text(encoding="utf-8")
    return run_id if tracking.is_resumable(run_id) else None


def found_in(folder: Path) -> bool:
    """Whether `folder` holds the checkpoints of an unfinished training."""
    return any(folder.glob(f"*{JOURNAL}"))


def settle_runs(tracking: "Tracking", folder: Path) -> None:
    """Send the waiting metrics in `folder`, and end their runs that MLflow still shows as running.

    The caller must hold the workspace's lock, so that nobody trains there. The original command resumes an ended run
    under its id.
    """
    for path in sorted(folder.glob(f"*{JOURNAL}")):
        checkpoints = path.with_name(path.name.removesuffix(JOURNAL))
        note = run_note(checkpoints)
        try:
            if note.is_file():
                _settle(tracking, note.read_text(encoding="utf-8"), path)
        except UserError as error:
            _log.warning("train: the metrics in %s still wait: %s", path, error)


def _settle(tracking: "Tracking", run_id: str, path: Path) -> None:
    run = tracking.find(run_id)
    if run is None:
        return
    died = path.stat().st_mtime
    Sender(Journal(path), tracking.log(run_id)).send_now()
    if run.is_running:
        tracking.end(run_id, "FAILED", died)
        _log.info("train: run %s has ended as FAILED: its process died; the same command resumes it", run_id[:8])
    if run.is_trained:
        path.unlink()
