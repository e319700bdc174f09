"""`convoy restore`: a backup becomes a project again."""

import json
import logging
import shutil
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from core.errors import UserError
from core.files import file_sha256
from models.tracking.database import move_artifacts
from pipelines.operations.backup import ARTIFACTS, DATABASE, FORMAT, MANIFEST, PROJECT, RECORDS, REMOTE, Manifest
from pipelines.project import init_git
from pipelines.settings import OUTPUTS, Settings
from pipelines.workspace import LEDGER, ROOT, exclusive

RESTORING = OUTPUTS / "restoring"
"""There while a restore goes on: one that was killed may be repeated over what it has left."""

_log = logging.getLogger("convoy")


def restore(backup: Path) -> Manifest:
    """Restore a backup into this folder, which holds no runs.

    Raises:
        UserError: the backup is incomplete, altered or of another version; or the folder holds runs, or files that
            differ from those of the backup; or somebody works here. Nothing was written then.

    """
    manifest = _read(backup)
    _check_files(backup, manifest)
    with exclusive():
        _require_room(backup)
        RESTORING.touch()
        init_git(ROOT.resolve())
        _copy_back(backup)
        move_artifacts(_database(), manifest.artifacts, _artifacts().resolve().as_uri())
        _pull()
        RESTORING.unlink()
    return manifest


def _read(backup: Path) -> Manifest:
    path = backup / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if content.get("format") != FORMAT:
            raise UserError(f"{backup} has format {content.get('format')}, and this Convoy reads {FORMAT}")
        manifest = Manifest.model_validate(content)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{backup} is no whole backup: {MANIFEST} is missing") from None
    except (ValueError, AttributeError, ValidationError):
        raise UserError(f"{path} is damaged: take another backup") from None
    here = version("mlflow")
    if _numbers(manifest.mlflow) > _numbers(here):
        raise UserError(
            f"{backup} was made with MLflow {manifest.mlflow}, and {here} is installed: install the newer one"
        )
    return manifest


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(".")[:2] if part.isdigit()]


def _check_files(backup: Path, manifest: Manifest) -> None:
    for name, (size, sha256) in manifest.files.items():
        path = backup / name
        if not path.is_file():
            raise UserError(f"{backup} is incomplete: {name} is missing")
        if path.stat().st_size != size or file_sha256(path) != sha256:
            raise UserError(f"{backup} was altered: {name} is not the file that was backed up")


def _require_room(backup: Path) -> None:
    from pipelines.session import running_server

    if running_server():
        raise UserError("`convoy up` runs in this folder: stop it before you restore")
    if RESTORING.exists():
        return
    there = [str(path) for path in (_database(), LEDGER, OUTPUTS / "dvc-remote") if path.exists()]
    if there:
        raise UserError(f"this folder has {' and '.join(there)}: restore into a folder without runs")
    for path in _files(backup / PROJECT):
        mine = ROOT / path.relative_to(backup / PROJECT)
        if mine.is_file() and mine.read_bytes() != path.read_bytes():
            raise UserError(f"{mine} differs from that of the backup: move yours away, or restore into an empty folder")


def _copy_back(backup: Path) -> None:
    """Put each part in its place; the database last, as it stands for the rest."""
    _copy_files(backup / PROJECT, ROOT)
    _copy_files(backup / RECORDS, OUTPUTS)
    _copy_files(backup / ARTIFACTS, _artifacts())
    if (backup / REMOTE).is_dir():
        from data.cache import local_remote

        if remote := local_remote(ROOT):
            _copy_files(backup / REMOTE, remote)
    if (backup / DATABASE).is_file():
        shutil.copy2(backup / DATABASE, _database())


def _copy_files(source: Path, target: Path) -> None:
    for path in _files(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _pull() -> None:
    from data.cache import pull

    if not Path("dvc.lock").is_file():
        return
    try:
        pull(ROOT)
    except UserError as error:
        _log.warning("restore: the images are not prepared here yet: %s; `convoy data prepare` reads the source", error)


def _artifacts() -> Path:
    folder = Settings().artifacts(ROOT)
    assert folder is not None
    return folder


def _database() -> Path:
    from pipelines.known import database_of

    database = database_of()
    if database is None:
        raise UserError("MLFLOW_TRACKING_URI names a server, which keeps the runs: unset it to restore here")
    return database
