"""What the stages of dvc.yaml share: their code, their parameters, and how they tell why they failed."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import code
from core.errors import UserError
from core.files import DISK_FULL, is_disk_full
from data.config import SOURCES

IN_NO_KEY = "How a stage is run and told what to do."

STAGES = {"ingest": "data.ingest.stage", "prepare": "data.preparing.stage"}
"""The module of each stage, in their order."""

PARAMS_FILE = Path("outputs/data-params.json")
"""The effective parameters, overrides included, that DVC tracks in place of params.yaml."""

UNTRACKED = "untracked"
"""Section of that file which dvc.yaml does not name: how a stage is run, which does not change what it makes."""

MESSAGE_FILE = "CONVOY_STAGE_MESSAGE"
"""Environment variable: where a stage leaves the line that says why it failed, for the process that asked for it."""


def run_stage(stage: Callable[[], None]) -> None:
    """Run a stage as a process: what a person can mend becomes one line and exit status 1."""
    try:
        stage()
    except UserError as error:
        _tell(str(error))
    except OSError as error:
        if not is_disk_full(error):
            raise
        _tell(DISK_FULL.format(Path.cwd()))
    except KeyboardInterrupt:
        sys.exit(130)


def _tell(message: str) -> None:
    try:
        Path(os.environ[MESSAGE_FILE]).write_text(message, encoding="utf-8", errors="backslashreplace")
    except (KeyError, OSError):
        # Nobody has asked, or the disk is too full for one line.
        print(f"convoy: {message}", file=sys.stderr)
    sys.exit(1)


def read_params(stage: str) -> dict[str, Any]:
    """Read the effective parameters of one stage: those that DVC tracks, and how it is to be run.

    Raises:
        UserError: `convoy` has not written them yet.

    """
    if not PARAMS_FILE.is_file():
        raise UserError(f"{PARAMS_FILE} is missing: `convoy data {stage}` writes it from params.yaml")
    content = json.loads(PARAMS_FILE.read_text(encoding="utf-8"))
    return {**content[stage], **content.get(UNTRACKED, {}).get(stage, {})}


def stage_code(source: str) -> dict[str, str]:
    """Name the code of each stage; ingesting depends on the source that it reads, and on no other.

    Raises:
        UserError: a file of the project with the source is not there, or is no Python.

    """
    ingest = code.digest(STAGES["ingest"], *SOURCES.modules(source), packages=SOURCES.packages(source))
    return {"ingest": ingest, "prepare": code.digest(STAGES["prepare"])}
