"""Cache of the trainings and versions in MLflow, because the import of MLflow takes seconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from core.files import whole_file
from models.config import METRICS
from pipelines.config import Config
from pipelines.settings import OUTPUTS, Settings
from pipelines.workspace import ROOT, open_registry, open_tracking

NOTE = OUTPUTS / "known-models.json"


class Training(BaseModel):
    """A finished training."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    is_measured: bool
    figures: str = ""
    """names the code of the metrics that it was measured with"""
    data_version: str
    code: str
    params: dict[str, str] | None
    """only for the latest training; None for all others"""


class Known(BaseModel):
    """Trainings by the key of their job, latest first; versions by the run that registered them; the champion."""

    model_config = ConfigDict(frozen=True)

    trained: dict[str, Training] = {}
    versions: dict[str, str] = {}
    champion: str | None = None

    @property
    def latest(self) -> Training | None:
        """The latest training."""
        return next(iter(self.trained.values()), None)


class _Note(BaseModel):
    state: list[Any]
    known: Known


def why_evaluate(is_measured: bool, figures: str, metrics: Sequence[str], has_weights: bool) -> str:
    """Say what a run lacks that is to be measured; "" where it lacks nothing, or its weights are gone."""
    if not is_measured:
        return "has not been measured"
    is_stale = metrics and figures != METRICS.state(metrics)
    return "was measured with other evaluation.metrics, or other code of theirs" if is_stale and has_weights else ""


def known_models(config: Config) -> Known:
    """Return the trainings and versions in MLflow. If the database is an unchanged file, the cache answers."""
    database = database_of()
    if database is None:
        return _ask(config)
    if not database.is_file():
        return Known()
    state = database_state(database, config)
    try:
        note = _Note.model_validate_json(NOTE.read_bytes())
    except (FileNotFoundError, ValidationError):
        note = None
    if note and note.state == state:
        return note.known
    known = _ask(config)
    # If the database has changed meanwhile, the answer may be outdated.
    if database_state(database, config) == state:
        with whole_file(NOTE) as temporary:
            temporary.write_text(_Note(state=state, known=known).model_dump_json(), encoding="utf-8")
    return known


def database_of() -> Path | None:
    """Return MLflow's database file, or None if MLflow is a server."""
    uri = Settings().tracking_uri(ROOT)
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def database_state(database: Path, config: Config) -> list[Any]:
    """Return the state that decides the answer. Each write changes size or time of the database, or of its log."""
    log = database.with_name(f"{database.name}-wal")
    files = [path.stat() for path in (database, log) if path.is_file()]
    times = [[status.st_size, status.st_mtime_ns] for status in files]
    return [str(database), config.registry.experiment, config.registry.model_name, times]


def _ask(config: Config) -> Known:
    from models.tracking.registry import CHAMPION
    from models.tracking.runs import CODE, KEY, MEASURED

    registry, trained = open_registry(config), dict[str, Training]()
    for run in open_tracking(config).all_trained():
        training = Training(
            run_id=run.run_id,
            is_measured="test/accuracy" in run.metrics,
            figures=run.tags.get(MEASURED, ""),
            data_version=run.data_version,
            code=run.tags.get(CODE, ""),
            params=None if trained else run.params,
        )
        trained.setdefault(run.tags.get(KEY, run.run_id), training)
    champion = registry.by_alias(CHAMPION)
    return Known(trained=trained, versions=registry.versions(), champion=champion.version if champion else None)
