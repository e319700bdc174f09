"""`convoy lineage`: shows the origin of an item, and everything made from it."""

import json
from collections.abc import Iterator, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import AsJson, Overrides, start

if TYPE_CHECKING:
    from pipelines.lineage import Node

SHORT = 12
"""Length of hashes in the terminal."""
MAX_LETTERS = 100
"""Maximum length of a reason in the terminal. --json prints the whole reason."""


def lineage(
    name: Annotated[
        str,
        typer.Argument(
            metavar="X",
            help="A commit, data version, run, model version or alias, Bento, image, container, target or address.",
        ),
    ] = "champion",
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Show the origin of an item, and everything made from it, from the git commit to the live endpoint."""
    config = start(overrides, says="lineage: asks MLflow")
    from pipelines.lineage import lineage as find_lineage

    found = find_lineage(config, name)
    if as_json:
        print(json.dumps([node.model_dump(mode="json") for node in found], indent=1, ensure_ascii=False))
        return
    for line in _lines(found):
        print(line)


def _lines(nodes: "Sequence[Node]", indent: str = "") -> Iterator[str]:
    for node in nodes:
        words = ", ".join(f"{key} {value}" for key, value in _shown(node))
        mark = "   <- asked for" if node.asked else ""
        yield f"{indent}{node.kind:8} {_name(node)}{f'  ({words})' if words else ''}{mark}"
        yield from _lines(node.children, f"{indent}  ")


def _name(node: "Node") -> str:
    if node.kind == "live":
        return f"{node.id} {'until' if 'until' in node.facts else 'now'}"
    return node.id[:SHORT] if node.kind in ("commit", "data", "run") else node.id


def _shown(node: "Node") -> Iterator[tuple[str, str]]:
    for key, value in node.facts.items():
        if key == "image_id":
            yield "id", value.removeprefix("sha256:")[:SHORT]
        elif key == "names":
            if node.kind == "version" and (aliases := value.partition(", ")[2]):
                yield "alias", aliases
        elif value and key != "model":
            yield key, shorten(value, MAX_LETTERS, placeholder="...")
