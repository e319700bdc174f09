"""`convoy cost`: what a network costs, counted, and how long it takes on this machine, measured."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import UserError
from core.files import whole_file
from pipelines.commands.options import AsJson, Overrides, start, typed_here

if TYPE_CHECKING:
    from models.networks.cost import NetworkCost
    from models.networks.roofline import Machine, Timing

CLASSES = 1000
"""Of ImageNet, where no images have been prepared."""


def cost(
    network: Annotated[str | None, typer.Argument(metavar="[NETWORK]", help="Else the configured one.")] = None,
    size: Annotated[int | None, typer.Option(min=8, max=4096, help="Pixels of an image, each way.")] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="Else those of the prepared images, or 1000.")] = None,
    as_json: AsJson = False,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="The page to write instead.", callback=typed_here)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Count what each layer of a network costs, and measure how long it takes on this machine."""
    if as_json and page:
        raise UserError("--json and --html are two forms of one answer: say one of them")
    if page and not page.absolute().parent.is_dir():
        raise UserError(f"--html {page}: there is no folder {page.parent}")
    # Another network need not have the configured one's options.
    values = [*([f"model.network={network}"] if network else []), *(overrides or [])]
    config = start(values, says="cost: times layers on this machine")
    from models.networks.cost import measure_layers
    from models.networks.registry import build_network
    from models.networks.roofline import measure_machine, time_network
    from models.networks.roofline_page import COLUMNS, draw_page, summarize, table

    size = size or config.model.input_size or config.data.size
    classes = classes or _prepared_classes() or CLASSES
    built = build_network(config.model, classes, size)
    found, machine, timing = measure_layers(built, size), measure_machine(), time_network(built, size)
    title = f"{config.model.network}: one image of {size} px in {classes} classes"
    if as_json:
        facts = {"network": config.model.network, "input_size": size, "num_classes": classes}
        print(json.dumps(facts | _as_json(found, machine, timing), indent=1))
    elif page:
        with whole_file(page) as temporary:
            temporary.write_text(draw_page(title, found, machine, timing), encoding="utf-8")
        print(page)
    else:
        _print_table([COLUMNS, *table(found, machine, timing)])
        print(f"{title}. {summarize(found, machine, timing)}")


def _prepared_classes() -> int | None:
    from data.manifest import read_data_manifest
    from pipelines.workspace import PREPARED

    try:
        return len(read_data_manifest(PREPARED).classes)
    except UserError:
        return None


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, second, *numbers in rows:
        cells = [first.ljust(widths[0]), second.ljust(widths[1]), *map(str.rjust, numbers, widths[2:])]
        print("  ".join(cells))


def _as_json(cost: "NetworkCost", machine: "Machine", timing: "Timing") -> dict[str, Any]:
    from models.networks.roofline import predict_seconds
    from models.networks.roofline_page import bound

    layers = [
        asdict(layer)
        | {
            "intensity": layer.intensity,
            "bound_by": bound(layer, machine),
            "predicted_seconds": machine.seconds(layer),
            "measured_seconds": timing.layers[layer.name],
        }
        for layer in cost.layers
    ]
    return {
        "multiply_adds": cost.multiply_adds,
        "num_parameters": cost.num_parameters,
        "weight_bytes": cost.weight_bytes,
        "activation_bytes": cost.activation_bytes,
        "peak_activation_bytes": cost.peak_bytes,
        "predicted_seconds": predict_seconds(machine, cost),
        "measured_seconds": timing.total,
        "machine": machine._asdict(),
        "layers": layers,
    }
