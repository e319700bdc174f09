"""`convoy reproduce`: trains a run again."""

from typing import Annotated

import typer

from core.errors import UserError
from pipelines.commands.options import AsJson, Overrides, start


def reproduce(
    run: Annotated[str, typer.Argument(metavar="RUN_ID", help="The run, or the first letters of its id.")],
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Train a run again from its commit, data and parameters, and compare the results."""
    config = start(overrides, says="reproduce: asks MLflow for the run")
    from pipelines.reproduction import reproduce_run
    from pipelines.workspace import exclusive

    with exclusive():
        found = reproduce_run(config, run)
    print(found.model_dump_json(indent=1) if as_json else found)
    if not as_json:
        for note in found.notes:
            print(f"note: {note}")
    if found.verdict == "different":
        raise UserError(f"run {found.run_id[:8]} was not reproduced: see above", exit_code=1)
