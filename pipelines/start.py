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


def start(overrides: list[str] | None, target: str | None = None) -> "Config":
    """Say where things are, read the configuration, with `target` in place of its own, and let our log speak."""
    from pipelines.config import PARAMS, load_config
    from pipelines.settings import prepare_environment

    prepare_environment(Path())
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("convoy")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    return load_config(Path(PARAMS), [*(overrides or []), *([f"serving.target={target}"] if target else [])])
