"""Shared parts of the commands: options, and the start of a command."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import UserError

if TYPE_CHECKING:
    from pipelines.config import Config

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a value of params.yaml; `convoy params` lists them all."
    ),
]
Target = Annotated[str | None, typer.Option(help="What it runs on: cpu, gpu, edge, or my_file:TARGET.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def enter_project(context: typer.Context, project: Path) -> None:
    """Change to the folder of --project. All paths of a project are relative to it.

    Raises:
        UserError: the folder does not exist.

    """
    context.obj = Path.cwd()
    try:
        os.chdir(project)
    except OSError as error:
        raise UserError(f"--project {project}: {error.strerror}; make a project with `convoy init DIR`") from None


def typed_here(context: typer.Context, path: Path | None) -> Path | None:
    """Resolve a path relative to the folder where the user typed the command, also with --project."""
    typed_in: Path | None = context.find_root().obj
    return typed_in / path if typed_in and path else path


def all_typed_here(context: typer.Context, paths: list[Path] | None) -> list[Path]:
    """Resolve paths like `typed_here`."""
    return [typed_here(context, path) or path for path in paths or []]


def start(overrides: list[str] | None, target: str | None = None, *, says: str = "") -> "Config":
    """Set the environment, configure the log, and read the configuration.

    `target` replaces the configured target. `says` is the command's first log line, before imports that take seconds.
    """
    from pipelines.config import PARAMS, load_config
    from pipelines.settings import prepare_environment

    prepare_environment(Path())
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("convoy")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    config = load_config(Path(PARAMS), [*(overrides or []), *([f"serving.target={target}"] if target else [])])
    if says:
        logger.info("%s", says)
    return config


def start_with_images(overrides: list[str] | None, says: str) -> "Config":
    """Start a command that reads the user's images, and check their source before anything else starts.

    Raises:
        UserError: `data.path` is missing, or the source cannot be used.

    """
    config = start(overrides, says=says)
    from data.sources.registry import open_source

    open_source(config.data).fingerprint()
    return config
