"""What the commands share: how one begins, and the options that many have."""

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
Target = Annotated[str | None, typer.Option(help="What it runs on: cpu, gpu or edge.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def enter_project(context: typer.Context, project: Path) -> None:
    """Go to the folder that --project names: all of a project is found from there.

    Raises:
        UserError: there is no such folder.

    """
    context.obj = Path.cwd()
    try:
        os.chdir(project)
    except OSError as error:
        raise UserError(f"--project {project}: {error.strerror}; make a project with `convoy init DIR`") from None


def typed_here(context: typer.Context, path: Path | None) -> Path | None:
    """Read a path from the folder where the command was typed, also where --project names another one."""
    typed_in: Path | None = context.find_root().obj
    return typed_in / path if typed_in and path else path


def all_typed_here(context: typer.Context, paths: list[Path]) -> list[Path]:
    """Read paths as `typed_here` reads one."""
    return [typed_here(context, path) or path for path in paths]


def start(overrides: list[str] | None, target: str | None = None, *, says: str = "") -> "Config":
    """Say where things are, read the configuration, and let our log speak.

    `target` takes the place of the configured one.

    `says` is the command's first line: the libraries that come next take seconds to import.
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
    """Start a command that reads the user's images, and look at their source before anything else starts.

    Raises:
        UserError: `data.path` is missing, or the source cannot be used.

    """
    config = start(overrides, says=says)
    from data.sources.registry import open_source

    open_source(config.data).fingerprint()
    return config
