"""What the commands share: how one begins, and the options that many have."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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


def start(overrides: list[str] | None, target: str | None = None, *, says: str = "") -> "Config":
    """Say where things are, read the configuration, with `target` in place of its own, and let our log speak.

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
    """Start a command that reads the user's images, and look at `data.path` before anything else starts.

    Raises:
        UserError: `data.path` is missing or cannot be used.

    """
    config = start(overrides, says=says)
    if config.data.source in ("folder", "parquet"):
        from data.sources import open_source

        open_source(config.data).fingerprint()
    return config
