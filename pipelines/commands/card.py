"""`convoy card`: writes a model's card."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Overrides, start, typed_here


def card(
    name: Annotated[str, typer.Argument(metavar="X", help="A version, an alias or a run.")] = "champion",
    html: Annotated[Path | None, typer.Option(help="The page to write instead.", callback=typed_here)] = None,
    overrides: Overrides = None,
) -> None:
    """Renew the model card with today's card.md, store it on the run, and print it."""
    config = start(overrides, says="card: asks MLflow for the model")
    from pipelines.model_card import hang_card
    from pipelines.references import find_version

    found = hang_card(config, find_version(config, name))
    if html:
        html.write_text(found.as_html(), encoding="utf-8")
        print(html)
    else:
        print(found.as_markdown())
