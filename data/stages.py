"""Shared parts of the stages in dvc.yaml: code, parameters, and error messages."""

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
"""Module of each stage, in order."""

PARAMS_FILE = Path("outputs/data-params.json")
"""Effective parameters, with overrides, which DVC tracks instead of params.yaml."""

UNTRACKED = "untracked"
"""Section of PARAMS_FILE that DVC does not track: how a stage is run, which does not change its result."""

MESSAGE_FILE = "CONVOY_STAGE_MESSAGE"
"""Environment variable with the path of a file. A failed stage writes its message there for the calling process."""


def run_stage(stage: Callable[[], None]) -> None:
    """Run a stage as a process. Errors that the user can fix become one line and exit status 1."""
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
        # There is no calling process, or the disk is full.
        print(f"convoy: {message}", file=sys.stderr)
    sys.exit(1)


def read_params(stage: str) -> dict[str, Any]:
    """Read the effective parameters of one stage, tracked and untracked.

    Raises:
        UserError: `convoy` has not written the parameters yet.

    """
    if not PARAMS_FILE.is_file():
        raise UserError(f"{PARAMS_FILE} is missing: `convoy data {stage}` writes it from params.yaml")
    content = json.loads(PARAMS_FILE.read_text(encoding="utf-8"))
    return {**content[stage], **content.get(UNTRACKED, {}).get(stage, {})}


def stage_code(source: str) -> dict[str, str]:
    """Digest of the code of each stage. Of all sources, ingest depends only on the configured source.

    Raises:
        UserError: the project's file with the source is missing, or is no Python.

    """
    ingest = code.digest(STAGES["ingest"], *SOURCES.modules(source), packages=SOURCES.packages(source))
    return {"ingest": ingest, "prepare": code.digest(STAGES["prepare"])}
