"""The folder in which a command works: its paths, its commit, and its lock for one command at a time."""

import fcntl
import logging
import math
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from core.errors import UserError, one_line
from models.training import unfinished
from models.training.job import TrainingJob
from pipelines.config import Config
from pipelines.settings import OUTPUTS, Settings
from serving.packaging.bento import Bento, build_bento, packed_bento

if TYPE_CHECKING:
    from models.tracking.registry import ModelVersion, Registry
    from models.tracking.runs import Tracking
    from serving.endpoint.answers import Examples
    from serving.rollout.deploy import Site

ROOT = Path()
"""Commands and their flows run in the workspace."""
RAW = Path("data/raw")
PREPARED = Path("data/prepared")
CHECKPOINTS = OUTPUTS / "checkpoints"
FEATURES = OUTPUTS / "features"
EXPORTED = OUTPUTS / "exported"
MODELS = OUTPUTS / "models"
LEDGER = OUTPUTS / "ledger.jsonl"
LOCK = OUTPUTS / "lock"

POLL_SECONDS = 1.0
"""Interval between two attempts to lock the workspace."""
REMIND_SECONDS = 60.0
"""Interval between two log lines while waiting for the lock."""

_held: set[Path] = set()
"""Locks that this process holds."""

_log = logging.getLogger("convoy")


def training_job(config: Config, data_version: str) -> TrainingJob:
    """Return the configured training job, on the data prepared here."""
    return TrainingJob(PREPARED, data_version, config.model, config.augmentation, config.training)


def require_data_version() -> str:
    """Return the version of the prepared data.

    Raises:
        UserError: nothing has been prepared.

    """
    from data.versioning import data_version

    version = data_version(ROOT)
    if version is None:
        raise UserError("there is no prepared data yet: prepare it with `convoy data prepare`")
    return version


def open_tracking(config: Config) -> "Tracking":
    """Open the configured experiment."""
    from models.tracking.runs import Tracking

    settings = Settings()
    return Tracking(settings.tracking_uri(ROOT), config.registry.experiment, settings.artifacts(ROOT))


def settle_runs(config: Config) -> None:
    """End the MLflow runs of processes that died here.

    If another process works here, nothing is done: only that process can tell its own runs from dead runs. The next
    training ends the dead runs.
    """
    if LOCK.resolve() in _held or not unfinished.found_in(CHECKPOINTS):
        return
    try:
        with exclusive():
            unfinished.settle_runs(open_tracking(config), CHECKPOINTS)
    except UserError as error:
        _log.info("train: runs that were left are not ended yet: %s", one_line(error))


def open_registry(config: Config) -> "Registry":
    """Open the configured registered model."""
    from models.tracking.registry import Registry

    return Registry(Settings().tracking_uri(ROOT), config.registry.model_name)


def has_champion(config: Config) -> bool:
    """Whether the model has a champion."""
    from models.tracking.registry import CHAMPION

    return open_registry(config).by_alias(CHAMPION) is not None


def require_champion(config: Config) -> "tuple[ModelVersion, Path]":
    """Return the champion and the folder of its download.

    Raises:
        UserError: there is no champion.

    """
    return require_model(config, None)


def require_model(config: Config, version: str | None) -> "tuple[ModelVersion, Path]":
    """Return a version, by default the champion, and the folder of its download.

    Raises:
        UserError: there is no such version, or no champion.

    """
    from models.tracking.registry import CHAMPION

    registry = open_registry(config)
    found = registry.find(version) if version else registry.by_alias(CHAMPION)
    if found is None and version:
        raise UserError(f"{registry.name} has no version {version}: MLflow's page lists those that there are")
    if found is None:
        raise UserError(f"{registry.name} has no champion yet: train one with `convoy run`")
    return found, registry.download(found, MODELS)


def pack_champion(config: Config, version: str | None = None) -> Bento:
    """Package the champion, or a version, for the configured target. An existing Bento is reused."""
    model, folder = require_model(config, version)
    examples = _choose_examples(config, model.data_version, str(model))
    return build_bento(folder, config.serving, Settings().bento_store(ROOT), examples)


def packed_model(config: Config, folder: Path) -> Bento | None:
    """Return the Bento that packaging the model in `folder` would build, or None if it does not exist."""
    from models.exported.predictor import read_model_manifest

    model = read_model_manifest(folder)
    examples = _choose_examples(config, model.data_version, f"{model.name} v{model.version}")
    return packed_bento(folder, config.serving, Settings().bento_store(ROOT), examples)


def _choose_examples(config: Config, data_version: str, model: str) -> "Examples | None":
    """Choose the configured number of test images, or None if the prepared data is not the model's.

    With another split, a test image may be one of the model's training images.
    """
    if not config.serving.examples:
        return None
    from serving.packaging.examples import choose_examples

    if require_data_version() != data_version:
        why = f"the images prepared here are not those of {model}"
        _log.warning("package: no examples on the page: %s; `convoy data prepare` may bring them back", why)
        return None
    return choose_examples(PREPARED, config.serving.examples)


def open_site(config: Config) -> "Site":
    """Open the stack in the workspace, for releases of the configured target.

    Raises:
        UserError: the stack has not been set up, or no Docker engine answers.

    """
    from serving.rollout.containers import Project
    from serving.rollout.deploy import Site

    return Site(Project(ROOT), config.serving.target_name, LEDGER, config.serving, config.rollout, config.gateway)


def git_commit() -> str | None:
    """Return the commit of the workspace, or None before the first commit, or without git."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


@contextmanager
def exclusive(*, waits: bool = False) -> Iterator[None]:
    """Lock the workspace, because two pipelines in one folder would write the same files.

    The lock is reentrant in a process, such as a command whose flow locks the workspace again. If another process holds
    the lock, `waits` makes this process wait, and log the holder. The system releases the lock when the holder ends,
    even if the holder is killed.

    Raises:
        UserError: another process holds the lock, and `waits` is false.

    """
    path = LOCK.resolve()
    if path in _held:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        _lock(file, waits=waits)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _held.add(path)
        try:
            yield
        finally:
            _held.remove(path)


def _lock(file: TextIO, *, waits: bool) -> None:
    told = -math.inf
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
        else:
            return
        if not waits:
            raise UserError(
                f"another convoy command (process {holder}) works in {ROOT.resolve()}: wait until it ends", exit_code=1
            )
        if time.monotonic() >= told + REMIND_SECONDS:
            told = time.monotonic()
            _log.info("waiting: another convoy command (process %s) works in %s", holder, ROOT.resolve())
        time.sleep(POLL_SECONDS)
