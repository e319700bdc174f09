"""`convoy clean`: what may go, and how it goes."""

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from models.training import unfinished
from models.training.job import BEST
from pipelines.config import Config
from pipelines.known import database_of
from pipelines.operations.backup import removing
from pipelines.operations.in_use import References, find_references, served_here
from pipelines.operations.samples import SAMPLES
from pipelines.settings import OUTPUTS, Settings
from pipelines.workspace import CHECKPOINTS, EXPORTED, FEATURES, MODELS, ROOT, exclusive, open_tracking
from serving.packaging.bento import Bento, list_bentos
from serving.packaging.image import image_tag

if TYPE_CHECKING:
    from models.tracking.runs import Tracking

DAY = 86_400.0
TRASH = OUTPUTS / "trash"
"""What is being removed: a folder goes there in one step, so that nobody meets half of it under its own name."""

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class Removal:
    """Something that may go."""

    kind: str
    name: str
    num_bytes: int
    why: str
    remove: Callable[[], None]


def clean(config: Config, *, dry_run: bool) -> list[Removal]:
    """Remove what `retention` no longer keeps, or only say what that is.

    Raises:
        UserError: another command works here, MLflow or the engine does not answer, or the ledger was altered.

    """
    with exclusive(), removing(waits=False, shared=False):
        removals = list(_plan(config, dry_run=dry_run))
        for removal in removals if not dry_run else ():
            removal.remove()
            _log.info("clean: removed %s %s", removal.kind, removal.name)
    return removals


def _plan(config: Config, *, dry_run: bool) -> Iterator[Removal]:
    yield from _leftovers()
    tracking = _open_tracking(config)
    if tracking and not dry_run:
        unfinished.settle_runs(tracking, CHECKPOINTS)
    references = _references(tracking)
    if tracking:
        yield from _runs(config, tracking, references)
        yield from _copies_of_models(config, references)
    yield from _checkpoints(config, references)
    yield from _old("features", FEATURES.glob("*/"), config.retention.features_days)
    yield from _old("samples", SAMPLES.glob("*.npz"), config.serving.samples_days)
    yield from _bentos(config, references)
    yield from _dvc_cache(config)
    yield from _old("log", OUTPUTS.glob("*.log"), config.retention.logs_days)


def _open_tracking(config: Config) -> "Tracking | None":
    database = database_of()
    return open_tracking(config) if database is None or database.is_file() else None


def _references(tracking: "Tracking | None") -> References:
    if tracking is None:
        return find_references(frozenset(), frozenset())
    from models.tracking.old_runs import aliased_runs, registered_runs

    return find_references(aliased_runs(tracking), registered_runs(tracking))


def _leftovers() -> Iterator[Removal]:
    """Give what killed commands have left; a day old, as a command may still write it."""
    scratch = Settings().bento_store(ROOT) / "tmp"
    yield from _old("leftover", [*TRASH.glob("*"), *scratch.glob("removed-*")], 0)
    yield from _old("leftover", [*OUTPUTS.rglob(".*.tmp"), *scratch.glob("build-*"), *scratch.glob("convoy-*")], 1)


def _runs(config: Config, tracking: "Tracking", references: References) -> Iterator[Removal]:
    days = config.retention.runs_days
    if days is None:
        return
    from data.versioning import data_version
    from models.tracking.old_runs import delete_run, old_runs

    def remove(run_id: str, artifacts: Path | None) -> None:
        delete_run(tracking, run_id)
        if artifacts:
            _remove_paths([artifacts], TRASH)

    keep = references.named | references.registered
    for run in old_runs(tracking, time.time() - days * DAY, data_version(ROOT), keep):
        size = _size([run.artifacts]) if run.artifacts else 0
        why = f"ended {_age(run.ended)} ago and registered no model"
        yield Removal("run", run.run_id[:8], size, why, lambda one=run: remove(one.run_id, one.artifacts))  # type: ignore[misc]


def _copies_of_models(config: Config, references: References) -> Iterator[Removal]:
    """Give exported and fetched models, which MLflow has too; those that have an alias or are live stay at hand."""
    for folder in (*EXPORTED.glob("*/"), *MODELS.glob("*/")):
        run_id = _run_of(folder)
        if run_id in references.registered and run_id not in references.in_use:
            yield from _old("copy", [folder], config.retention.copies_days)


def _run_of(folder: Path) -> str | None:
    from models.exported.predictor import read_model_manifest

    try:
        return read_model_manifest(folder).run_id
    except UserError:
        return None


def _checkpoints(config: Config, references: References) -> Iterator[Removal]:
    """Give the checkpoints of old trainings, those that have not ended with what they left beside them."""
    for folder in CHECKPOINTS.glob("*/"):
        note = unfinished.run_note(folder)
        run_id = note.read_text(encoding="utf-8") if note.is_file() else ""
        if run_id in references.named:
            paths = [path for path in folder.iterdir() if path.name != BEST]
        else:
            beside = (note, unfinished.journal_file(folder))
            paths = [folder, *(path for path in beside if path.is_file())]
        yield from _together("checkpoints", folder, paths, config.retention.checkpoints_days)


def _bentos(config: Config, references: References) -> Iterator[Removal]:
    store, number = Settings().bento_store(ROOT), config.retention.bentos
    if number is None:
        return
    seen: dict[str, int] = {}
    models = set[tuple[str, str]]()
    for bento in list_bentos(store):
        seen[bento.target] = seen.get(bento.target, 0) + 1
        model = (bento.run_id, bento.target)
        is_in_use = bento.run_id in references.in_use and model not in models
        models.add(model)
        if seen[bento.target] > number and not is_in_use and not _is_used(bento, references):
            why = f"{number} newer ones for {bento.target} are kept"
            yield _removal("Bento", bento.tag, [bento.path], why, store / "tmp")


def _is_used(bento: Bento, references: References) -> bool:
    return image_tag(bento) in references.images or served_here(bento)


def _dvc_cache(config: Config) -> Iterator[Removal]:
    days = config.retention.copies_days
    if days is None or not Path(".dvc/cache").is_dir():
        return
    from data.cache import unused_files

    try:
        files = unused_files(ROOT, time.time() - days * DAY)
    except UserError as error:
        _log.warning("clean: DVC's cache stays as it is: %s", error)
        return
    if files:

        def remove() -> None:
            for file in files:
                file.path.unlink(missing_ok=True)

        why = f"{_age_of_days(days)} old, not in use here, and in the DVC remote"
        yield Removal("DVC cache", f"{len(files):,} files", sum(file.num_bytes for file in files), why, remove)


def _old(kind: str, paths: Iterable[Path], days: float | None) -> Iterator[Removal]:
    for path in paths:
        yield from _together(kind, path, [path], days)


def _together(kind: str, name: Path, paths: list[Path], days: float | None) -> Iterator[Removal]:
    """Give paths that go together, where nothing in them was written for so many days."""
    if days is None or not paths:
        return
    newest = max(file.lstat().st_mtime for path in paths for file in _files(path))
    if time.time() - newest >= days * DAY:
        yield _removal(kind, name.name, paths, f"written {_age(newest)} ago", TRASH)


def _removal(kind: str, name: str, paths: list[Path], why: str, trash: Path) -> Removal:
    return Removal(kind, name, _size(paths), why, lambda: _remove_paths(paths, trash))


def _remove_paths(paths: list[Path], trash: Path) -> None:
    trash.mkdir(parents=True, exist_ok=True)
    for path in paths:
        gone = path if path.is_relative_to(trash) else trash / f"removed-{uuid.uuid4().hex}"
        if path.exists() and path != gone:
            path.rename(gone)
        if gone.is_dir():
            shutil.rmtree(gone)
        else:
            gone.unlink(missing_ok=True)


def _files(path: Path) -> Iterator[Path]:
    """Give a path and all below it."""
    yield path
    if path.is_dir() and not path.is_symlink():
        yield from path.rglob("*")


def _size(paths: Iterable[Path]) -> int:
    """Count bytes, those of a file with two names once."""
    found = {}
    for path in paths:
        for file in _files(path):
            status = file.lstat()
            found[status.st_dev, status.st_ino] = 0 if file.is_dir() else status.st_size
    return sum(found.values())


def _age(when: float) -> str:
    return _age_of_days((time.time() - when) / DAY)


def _age_of_days(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"
