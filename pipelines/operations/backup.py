"""`convoy backup`: a project of one machine, copied as it is at one moment, while its runs go on."""

import fcntl
import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict

from core.errors import UserError
from core.files import file_sha256, whole_file
from core.tool import tool_version
from models.tracking.database import copy_database
from pipelines.known import database_of
from pipelines.operations.receivers import RECEIVERS
from pipelines.settings import OUTPUTS, Settings
from pipelines.workspace import LEDGER, ROOT
from serving.rollout.chain import head_file

FORMAT = 1
MANIFEST = "backup.json"
DATABASE, ARTIFACTS, REMOTE, PROJECT, RECORDS = "mlflow.db", "artifacts", "dvc-remote", "project", "records"
"""Parts of a backup."""
REMOVING_LOCK = OUTPUTS / "removing.lock"
"""Held by `convoy clean`, and shared by backups: what a backup is about to copy must not go."""

_log = logging.getLogger("convoy")


class Manifest(BaseModel):
    """What a backup holds; written last, so that a backup without it is not whole."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    convoy: str = ""
    mlflow: str = ""
    when: AwareDatetime
    artifacts: str
    """URI of the folder that the artifacts were in"""
    files: dict[str, tuple[int, str]]
    """size in bytes and SHA-256 of each file"""


def back_up(folder: Path) -> Manifest:
    """Copy MLflow's database and files, the DVC remote, the ledger and the project's own files to a new folder.

    The database comes first: what it names is there already when the rest is copied. Checkpoints, packaged models and
    Prefect's records are left out.

    Raises:
        UserError: the folder is there, or inside the project; or a server keeps the runs.

    """
    database, remote = _require_one_machine(), _remote()
    target = folder.absolute()
    if target.exists():
        raise UserError(f"{folder} is there already: name a new folder, such as {folder}-2")
    if target.resolve().is_relative_to(ROOT.resolve()):
        raise UserError(f"{folder} is inside the project, and would go with it: name a folder on another disk")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True, mode=0o700)
        with removing(waits=True, shared=True):
            if database.is_file():
                copy_database(database, partial / DATABASE)
            _copy_tree(_artifacts(), partial / ARTIFACTS)
            if remote:
                _copy_tree(remote, partial / REMOTE)
            _copy_records(partial / RECORDS)
            _copy_project(partial / PROJECT)
        manifest = _describe(partial)
        with whole_file(partial / MANIFEST) as temporary:
            temporary.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        partial.rename(target)
    except OSError as error:
        raise UserError(
            f"the backup is not whole: {error.filename or partial}: {error.strerror}", exit_code=1
        ) from error
    return manifest


@contextmanager
def removing(*, waits: bool, shared: bool) -> Iterator[None]:
    """Hold the lock on removing things.

    Raises:
        UserError: a backup is being made, and `waits` is false.

    """
    REMOVING_LOCK.parent.mkdir(parents=True, exist_ok=True)
    with REMOVING_LOCK.open("a") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError("a backup of this project is being made: clean when it is done", exit_code=1) from None
        yield


def _require_one_machine() -> Path:
    database = database_of()
    if database is None:
        uri = Settings().tracking_uri(ROOT).rpartition("@")[2]
        raise UserError(f"the runs are on the server {uri}: back that server up by its own means")
    return database


def _artifacts() -> Path:
    folder = Settings().artifacts(ROOT)
    assert folder is not None
    return folder


def _remote() -> Path | None:
    from data.cache import local_remote

    remote = local_remote(ROOT)
    if remote is None:
        _log.warning("backup: without the data: the DVC remote is no folder of this machine")
    return remote


def _copy_records(target: Path) -> None:
    # The head first: lines that come after it still follow it.
    for path in (head_file(LEDGER), LEDGER, RECEIVERS):
        if path.is_file():
            _copy(path, target / path.name)


def _copy_project(target: Path) -> None:
    """Copy what git has, and what it would take: parameters, decisions, code of the user's own."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"git does not say which files the project has: {error}", exit_code=1) from None
    for name in filter(None, found.split("\0")):
        if (ROOT / name).is_file():
            _copy(ROOT / name, target / name)


def _copy_tree(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.name.endswith(".tmp"):
            _copy(path, target / path.relative_to(source))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy2(source, target)
    except FileNotFoundError:
        if source.exists():
            raise
        # A run that goes on has renamed or removed it.
        target.unlink(missing_ok=True)


def _describe(folder: Path) -> Manifest:
    files = {
        path.relative_to(folder).as_posix(): (path.stat().st_size, file_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return Manifest(
        convoy=tool_version(),
        mlflow=version("mlflow"),
        when=datetime.now(UTC),
        artifacts=_artifacts().resolve().as_uri(),
        files=files,
    )
