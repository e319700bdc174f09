"""`convoy compare`: compares two models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import UserError
from core.pages import milliseconds, percent, points, size
from pipelines.commands.options import AsJson, Overrides, start, typed_here

if TYPE_CHECKING:
    from models.judging.comparison import ChangedImage, ModelComparison

NUM_LISTED = 10
"""Maximum number of images, and of classes, in the terminal."""


def compare(
    first: Annotated[
        str | None, typer.Argument(metavar="A", help="A version, an alias or a run; else the champion.")
    ] = None,
    second: Annotated[
        str | None, typer.Argument(metavar="B", help="What is held against A; else the challenger.")
    ] = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(help="The page with pictures to write instead.", callback=typed_here)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Compare two models: newly broken and fixed images, classes, calibration, size and time.

    With A alone, compare A with the champion.
    """
    if as_json and html:
        raise UserError("--json and --html are two forms of one answer: say one of them")
    config = start(overrides, says="compare: asks MLflow for the models")
    from pipelines.comparisons import compare_references

    compared = compare_references(config, first, second)
    if html:
        html.write_text(compared.page(), encoding="utf-8")
        print(html)
    elif as_json:
        print(compared.found.model_dump_json(indent=1))
    else:
        _print(compared.found)


def _print(found: "ModelComparison") -> None:
    a, b = found.champion, found.challenger
    print(f"{b.name} {b.title} against {a.title}: {found.overall}")
    for note in found.notes:
        print(f"note: {note}")
    _print_images("newly broken", found.broken, found)
    _print_images("fixed", found.fixed, found)
    print(f"\n{'':28} {a.title:>12} {b.title:>12}")
    for name, first, second in (
        ("accuracy", percent(a.accuracy), percent(b.accuracy)),
        ("expected calibration error", percent(a.calibration_error), percent(b.calibration_error)),
        ("model file", size(a.num_bytes), size(b.num_bytes)),
        *((f"batch of {n}, one core", milliseconds(a.seconds[n]), milliseconds(b.seconds[n])) for n in a.seconds),
    ):
        print(f"{name:28} {first:>12} {second:>12}")
    print(f"\n{'class':28} {a.title:>12} {b.title:>12} {'points':>8}  95 % interval, p of all classes together")
    for one in found.by_class[:NUM_LISTED]:
        before, after = percent(one.champion_accuracy), percent(one.challenger_accuracy)
        interval = f"{points(one.low)} to {points(one.high)}, p {one.p_value:.2g}"
        print(f"{one.name[:28]:28} {before:>12} {after:>12} {points(one.difference):>8}  {interval}")
    if len(found.by_class) > NUM_LISTED:
        print(f"and {len(found.by_class) - NUM_LISTED} more classes: --json lists all")


def _print_images(title: str, images: "tuple[ChangedImage, ...]", found: "ModelComparison") -> None:
    print(f"\n{title}: {len(images):,}")
    for one in images[:NUM_LISTED]:
        answers = (
            f"{side.title} {answer.label!r} {percent(answer.probability)}"
            for side, answer in ((found.champion, one.champion), (found.challenger, one.challenger))
        )
        print(f"  {one.origin}  is {one.label!r}: {', '.join(answers)}")
    if len(images) > NUM_LISTED:
        print(f"  and {len(images) - NUM_LISTED:,} more: --html shows them, --json lists all")
