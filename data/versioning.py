"""Data versions: the one place that knows DVC, whose Repo class is no public API and stays behind this file."""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.errors import UserError
from data.sources import open_source
from data.stage import MESSAGE_FILE, PARAMS_FILE, whole_file

STAGES = ("ingest", "prepare")


@dataclass(frozen=True)
class StageOutcome:
    """Whether a stage ran, and why."""

    stage: str
    ran: bool
    reason: str


def reproduce(workspace: Path, config: DataConfig, target: str = "prepare") -> list[StageOutcome]:
    """Bring `target` and what it depends on up to date with the configuration and the source.

    Raises:
        UserError: the source cannot be used, a stage failed, or the workspace is not under version control.

    """
    fingerprint = open_source(config).fingerprint()
    _write_params(workspace, config, fingerprint)
    wanted = STAGES[: STAGES.index(target) + 1]
    with _repo(workspace) as repo, _stage_environment() as message, _readable_errors(message):
        reasons = _reasons(repo, target)
        ran = {stage.name for stage in repo.reproduce(targets=[target])}
    return [_outcome(stage, ran=stage in ran, changes=reasons.get(stage, [])) for stage in wanted]


def push(workspace: Path) -> int:
    """Push the data to the default remote; returns the number of files that were not there yet."""
    with _repo(workspace) as repo, _readable_errors():
        return int(repo.push())


def data_version(workspace: Path) -> str | None:
    """DVC's md5 of data/prepared as the last `reproduce` left it; None before the first."""
    if not (workspace / "dvc.lock").is_file():
        return None
    with _repo(workspace) as repo:
        (out,) = repo.stage.load_one(name="prepare").outs
        return str(out.hash_info.value).removesuffix(".dir") if out.hash_info else None


def _write_params(workspace: Path, config: DataConfig, fingerprint: str) -> None:
    """Write what each stage depends on, so that DVC sees overrides too, and nothing that it does not depend on."""
    fields = config.model_dump(mode="json")
    ingest = {name: fields[name] for name in ("source", "path", "max_file_mb")}
    prepare = {name: value for name, value in fields.items() if name not in ("path", "max_file_mb")}
    content = json.dumps({"fingerprint": fingerprint, "ingest": ingest, "prepare": prepare}, indent=1)
    path = workspace / PARAMS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


@contextmanager
def _repo(workspace: Path) -> Iterator[Any]:
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import SCMError

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        repo = Repo(str(workspace))
        repo.scm  # noqa: B018 - opens the git repository, which may be missing
    except (NotDvcRepoError, SCMError) as error:
        raise UserError(
            f"{workspace.resolve()} is no git repository, which versions of the data refer to: type `git init`, "
            "or go without it by `dvc config core.no_scm true`"
        ) from error
    with repo:
        yield repo


@contextmanager
def _stage_environment() -> Iterator[Path]:
    """Let the stages, which are processes of their own, find this Python, this code, and a place for their message."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        message = Path(folder) / "message"
        os.environ[MESSAGE_FILE] = str(message)
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before.get('PATH', os.defpath)}"
        try:
            yield message
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def _readable_errors(message: Path | None = None) -> Iterator[None]:
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    try:
        yield
    except LockError:
        raise UserError(
            "another command is preparing data in this workspace: wait until it ends", exit_code=1
        ) from None
    except DvcException as error:
        if message and message.is_file():
            raise UserError(message.read_text(encoding="utf-8"), exit_code=1) from None
        _raise_if_interrupted(error)
        raise UserError(f"DVC: {_innermost(error)}", exit_code=1) from error


def _raise_if_interrupted(error: BaseException) -> None:
    """Ctrl-C reaches the stage as well as this process, and DVC reports the stage's end as a failure."""
    chain = error
    while chain is not None:
        if str(chain).endswith(("exited with 130", "exited with -2")):
            raise KeyboardInterrupt
        chain = chain.__cause__ or chain.__context__  # type: ignore[assignment]


def _innermost(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split()) or type(error).__name__


def _outcome(stage: str, *, ran: bool, changes: list[str]) -> StageOutcome:
    if ran:
        return StageOutcome(stage, ran, ", ".join(changes) or "what it depends on has changed")
    return StageOutcome(
        stage, ran, "restored from the cache" if changes else "source, parameters and code are unchanged"
    )


def _reasons(repo: Any, target: str) -> dict[str, list[str]]:
    """What has changed for each stage since it last ran."""
    reasons = {}
    for name, changes in repo.status(targets=[target], with_deps=True).items():
        stage = repo.stage.load_one(name=name)
        never_ran = not any(dependency.hash_info for dependency in stage.deps)
        reasons[name] = ["it has not run before"] if never_ran else [*_changed_params(stage), *_changed_files(changes)]
    return reasons


def _changed_params(stage: Any) -> list[str]:
    """Parameters whose value differs from the one in dvc.lock, one by one."""
    words = []
    for dependency in stage.deps:
        before = getattr(dependency.hash_info, "value", None)
        if not isinstance(before, dict):
            continue
        now = json.loads(Path(dependency.fs_path).read_text(encoding="utf-8"))
        for section, values in before.items():
            if not isinstance(values, dict):
                words += ["the source has changed"] if now[section] != values else []
                continue
            for name in sorted(values.keys() | now[section].keys()):
                old, new = values.get(name), now[section].get(name)
                words += [f"data.{name} {old} -> {new}"] if old != new else []
    return words


def _changed_files(changes: list[Any]) -> list[str]:
    """From DVC's form, `[{"changed deps": {"data/raw": "modified"}}, "changed command"]`."""
    words = []
    for change in changes:
        if isinstance(change, str):
            words.append(change)
            continue
        for kind, files in change.items():
            named = [name for name, state in files.items() if isinstance(state, str) and not name.endswith(".json")]
            words += [f"{name} {files[name] if 'deps' in kind else 'is missing or altered'}" for name in named]
    return words
