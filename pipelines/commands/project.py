"""The commands for a project as a whole: creation, parameters, and forecast of the next run."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from core.errors import UserError
from pipelines.commands.options import AsJson, Overrides, start, typed_here


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to make the project in.", callback=typed_here)
    ],
    source: Annotated[str | None, typer.Option(help="Where the images come from: data.source.")] = None,
    path: Annotated[
        Path | None, typer.Option(metavar="PHOTOS", help="The folder of the images: data.path.", callback=typed_here)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Make a project: a folder with parameters, data and runs, apart from the tool."""
    from data.config import NEED_PATH
    from pipelines.config import default_config
    from pipelines.project import init_project

    if path and not source:
        source = "folder"
    values = [f"data.source={source}"] if source else []
    values += [f"data.path={json.dumps(str(path.expanduser().resolve()))}"] if path else []
    config = default_config([*values, *(overrides or [])])
    if config.data.source in NEED_PATH and not config.data.path:
        raise UserError(f"--source {config.data.source} needs the folder of the images: say --path PHOTOS too")
    init_project(folder, config)
    print(f"{folder} is a project: cd {folder}, then convoy run")


def explain(as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Say for each step whether the next run would execute it, and why. Nothing runs."""
    config = start(overrides)
    # Hide the log lines of the steps.
    logging.getLogger("convoy").setLevel(logging.WARNING)
    from pipelines.explain import explain as explain_steps

    steps = explain_steps(config)
    if as_json:
        print(json.dumps([asdict(step) for step in steps], indent=1, ensure_ascii=False))
        return
    for step in steps:
        print(f"{step.name:9} {step.answer:8} {step.reason}")


def params(
    changed: Annotated[bool, typer.Option("--changed", help="Only those that differ from the defaults.")] = False,
    overrides: Overrides = None,
) -> None:
    """Print every parameter with its meaning, as params.yaml with the overrides applied."""
    from pipelines.config import render

    print(render(start(overrides), only_changed=changed), end="")
