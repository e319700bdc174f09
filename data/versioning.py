"""Data versions. Only this file uses DVC, because DVC's class Repo is no public interface."""

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError, causes
from core.files import DISK_FULL, is_disk_full, whole_file
from data.changes import changed_files, changed_params
from data.config import DataConfig
from data.quality.decisions import DECISIONS_FILE, digest_of_decisions
from data.sources.registry import open_source
from data.stages import MESSAGE_FILE, PARAMS_FILE, STAGES, UNTRACKED, stage_code

LOCK_FILE = "dvc.lock"


@dataclass(frozen=True)
class StageOutcome:
    """Whether a stage ran, and the reason."""

    stage: str
    ran: bool
    reason: str


def reproduce(
    workspace: Path, config: DataConfig, target: str = "prepare", meanwhile: Callable[[], None] | None = None
) -> list[StageOutcome]:
    """Bring `target` and the stages before it up to date with the configuration and the source.

    `meanwhile` is called before stages run in their own processes, unless everything is up to date.

    Raises:
        UserError: the source cannot be used, a decision is malformed, a stage failed, or the workspace is not under
            version control.
        KeyboardInterrupt: Ctrl-C, in this process or in a stage.

    """
    source = config.model_copy(update={"path": workspace / config.path}) if config.path else config
    fingerprint = open_source(source).fingerprint()
    wanted = list(STAGES)[: list(STAGES).index(target) + 1]
    with (
        open_repo(workspace) as repo,
        _stage_environment() as message,
        readable_errors(workspace, message),
        _whole_lock_file(repo, workspace / LOCK_FILE),
    ):
        _drop_cut_off_rwlock(repo)
        inputs = _inputs(workspace, config, fingerprint)
        _write_params(workspace, inputs)
        if (reasons := _reasons(repo, workspace, wanted, inputs)) and meanwhile:
            meanwhile()
        ran = {stage.name for stage in repo.reproduce(targets=[_address(workspace, target)])}
    return [_outcome(stage, ran=stage in ran, changes=reasons.get(stage, [])) for stage in wanted]


def explain(workspace: Path, config: DataConfig) -> tuple[str | None, dict[str, list[str]]]:
    """Return the data version, and a description of the changes of each stage since its last run. Writes nothing.

    Raises:
        UserError: the source cannot be used, a decision is malformed, or the workspace is not under version control.

    """
    source = config.model_copy(update={"path": workspace / config.path}) if config.path else config
    inputs = _inputs(workspace, config, open_source(source).fingerprint())
    with open_repo(workspace) as repo, readable_errors(workspace):
        reasons = _reasons(repo, workspace, list(STAGES), inputs)
        return _version(repo, workspace), {stage: reasons.get(stage, []) for stage in STAGES}


def push(workspace: Path) -> int:
    """Push the data to the default remote. Returns the number of new files there.

    Raises:
        UserError: the remote cannot be reached or written.

    """
    with open_repo(workspace) as repo, readable_errors(workspace):
        return int(repo.push())


def data_version(workspace: Path) -> str | None:
    """Return DVC's md5 of data/prepared after the last `reproduce`, or None before the first."""
    if not (workspace / LOCK_FILE).is_file():
        return None
    with open_repo(workspace) as repo, readable_errors(workspace):
        return _version(repo, workspace)


def _version(repo: Any, workspace: Path) -> str | None:
    (out,) = _load_stage(repo, workspace, "prepare").outs
    return str(out.hash_info.value).removesuffix(".dir") if out.hash_info else None


def _address(workspace: Path, stage: str) -> str:
    return f"{workspace / 'dvc.yaml'}:{stage}"


def _load_stage(repo: Any, workspace: Path, stage: str) -> Any:
    return repo.stage.load_one(path=str(workspace / "dvc.yaml"), name=stage)


def _inputs(workspace: Path, config: DataConfig, fingerprint: str) -> dict[str, Any]:
    """Return the inputs of each stage, with overrides, and nothing else."""
    fields = config.model_dump(mode="json")
    ingest = {name: fields[name] for name in ("source", "path", "max_file_mb")}
    untracked = {"prepare": {"scheduler": fields.pop("scheduler")}}
    prepare = {name: value for name, value in fields.items() if name not in ("path", "max_file_mb")}
    return {
        "fingerprint": fingerprint,
        "ingest": ingest,
        "decisions": digest_of_decisions(workspace / DECISIONS_FILE),
        "prepare": prepare,
        "code": stage_code(config.source),
        UNTRACKED: untracked,
    }


def _write_params(workspace: Path, inputs: dict[str, Any]) -> None:
    """Write the inputs of the stages to the file that DVC tracks."""
    content = json.dumps(inputs, indent=1)
    path = workspace / PARAMS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


@contextmanager
def open_repo(workspace: Path) -> Iterator[Any]:
    """Open DVC's repository. A workspace without DVC or git is a `UserError`."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        repo = Repo(str(workspace))
        repo.scm  # noqa: B018 - opens the git repository, which may be missing
    except NotDvcRepoError:
        raise UserError(f"{workspace.resolve()} has no .dvc folder: make a project with `convoy init DIR`") from None
    except SCMError:
        raise UserError(
            f"{workspace.resolve()} is no git repository, which versions of the data refer to: type `git init`, "
            "or go without it by `dvc config core.no_scm true`"
        ) from None
    with repo:
        yield repo


@contextmanager
def _stage_environment() -> Iterator[Path]:
    """Set the environment of the stages' processes: this Python, and a file for their message."""
    with tempfile.TemporaryDirectory() as folder:
        message = Path(folder) / "message"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        # PYTHONSAFEPATH keeps a file `data.py` in the project's folder from hiding our package.
        values = {MESSAGE_FILE: str(message), "PATH": path, "PYTHONSAFEPATH": "1"}
        before = {name: os.environ.get(name) for name in values}
        os.environ |= values
        try:
            yield message
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                os.environ |= {} if value is None else {name: value}


@contextmanager
def _whole_lock_file(repo: Any, lock: Path) -> Iterator[None]:
    """Restore the old lock file if DVC, which writes in place, leaves an incomplete one, for example on a full disk."""
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException

    before = lock.with_name(f".{lock.name}.tmp")
    if lock.is_file() and not lock.read_bytes():
        lock.unlink()
    try:
        if lock.is_file():
            shutil.copyfile(lock, before)
        yield
    except BaseException:
        try:
            Lockfile(repo, str(lock)).load()
        except DvcException:
            lock.unlink()
            if before.is_file():
                before.rename(lock)
        raise
    finally:
        before.unlink(missing_ok=True)


def _drop_cut_off_rwlock(repo: Any) -> None:
    """Remove DVC's table of used files if a full disk has truncated it, because DVC would fail to read the table."""
    from dvc.rwlock import RWLOCK_FILE

    table = Path(repo.tmp_dir) / RWLOCK_FILE
    with repo.lock:  # every process that changes the table holds this lock
        try:
            json.loads(table.read_bytes())
        except FileNotFoundError:
            pass
        except ValueError:
            table.unlink()


@contextmanager
def readable_errors(workspace: Path, message: Path | None = None) -> Iterator[None]:
    """Turn DVC's errors, raised or only logged, into a UserError."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.rwlock import RWLockFileCorruptedError

    logged: list[BaseException] = []
    try:
        with _listening(logged):
            yield
        if logged:
            raise logged[0]
    except LockError:
        raise UserError(
            "another command is preparing data in this workspace: wait until it ends", exit_code=1
        ) from None
    except (DvcException, OSError) as error:
        if message and message.is_file():
            raise UserError(message.read_text(encoding="utf-8"), exit_code=1) from None
        _raise_if_interrupted(error)
        # The table was intact at the start.
        cut_off = any(isinstance(one, RWLockFileCorruptedError) for one in causes(error))
        if cut_off or any(map(is_disk_full, [error, *logged])):
            raise UserError(DISK_FULL.format(workspace.resolve()), exit_code=1) from error
        raise UserError(f"DVC: {_words(*logged[:1], error)}", exit_code=1) from error


@contextmanager
def _listening(errors: list[BaseException]) -> Iterator[None]:
    """Collect DVC's logged errors instead of printing them. DVC only logs an error if it cannot copy a file."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            cause = record.exc_info[1] if record.exc_info else None
            errors.append(cause or OSError(record.getMessage()))

    loggers = [logging.getLogger(name) for name in ("dvc", "dvc_data", "dvc_objects")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [Collector(logging.ERROR)], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


def _raise_if_interrupted(error: BaseException) -> None:
    """Raise KeyboardInterrupt if Ctrl-C has also reached the stage, which DVC reports as a failure."""
    if any(str(one).endswith(("exited with 130", "exited with -2")) for one in causes(error)):
        raise KeyboardInterrupt


def _words(*errors: BaseException) -> str:
    """Join the messages of the outermost and the innermost errors: the failed step, and the cause."""
    words: dict[str, None] = {}
    for error in errors:
        *_, innermost = causes(error)
        words |= dict.fromkeys(" ".join(str(one).split()) or type(one).__name__ for one in (error, innermost))
    return ": ".join(words)


def _outcome(stage: str, *, ran: bool, changes: list[str]) -> StageOutcome:
    if ran:
        return StageOutcome(stage, ran, ", ".join(changes) or "what it depends on has changed")
    unchanged = "what it depends on came out the same" if changes else "source, parameters and code are unchanged"
    return StageOutcome(stage, ran, unchanged)


def _reasons(repo: Any, workspace: Path, stages: Sequence[str], inputs: dict[str, Any]) -> dict[str, list[str]]:
    """Describe the changes of each stage since its last run. Unchanged stages are left out."""
    found = repo.status(targets=[_address(workspace, stages[-1])], with_deps=True)
    changes = {address.rpartition(":")[2]: changes for address, changes in found.items()}
    reasons = {}
    for name in stages:
        stage = _load_stage(repo, workspace, name)
        never_ran = not any(dependency.hash_info for dependency in stage.deps)
        words = [*changed_params(stage, inputs), *changed_files(changes.get(name, []))]
        if never_ran or words:
            reasons[name] = ["it has not run before"] if never_ran else words
    return reasons
