"""`convoy export`: a model in the formats of other runtimes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import UserError
from pipelines.commands.options import AsJson, Overrides, start, typed_here

if TYPE_CHECKING:
    from models.judging.parity import FormatParity


def export(
    folder: Annotated[Path, typer.Option("--to", metavar="DIR", help="The new folder to write.", callback=typed_here)],
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A version, an alias or a run; else the champion.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="onnx, onnx-int8, torch or c; may be repeated. Else all of this model but c."),
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Write a model for other runtimes, as ONNX, torch program or C, and hold the formats against each other."""
    config = start(overrides, says="export: asks MLflow for the model")
    from models.exported.formats import FORMATS, available_formats
    from models.judging.measured import measure
    from models.judging.parity import export_formats
    from pipelines.references import find_version
    from pipelines.workspace import MODELS, PREPARED, RAW, open_registry

    wanted = [name for name in FORMATS if name in (formats or ())]
    if unknown := set(formats or ()) - set(wanted):
        raise UserError(f"--format {min(unknown)}: the formats are {', '.join(FORMATS)}")
    source = open_registry(config).download(find_version(config, model or "champion"), MODELS)
    wanted = wanted or [name for name in available_formats(source) if name != "c"]
    found = export_formats(source, wanted, folder, measure(source, RAW, PREPARED).images)
    if as_json:
        print(f"[{', '.join(one.model_dump_json() for one in found)}]")
    else:
        _print(found, folder)


def _print(found: "list[FormatParity]", folder: Path) -> None:
    print(f"{'format':10} {'bytes':>12} {'accuracy':>9} {'same class':>11} {'difference':>11} {'ms':>8}  files")
    for one in found:
        shares = f"{one.accuracy:9.4f} {one.agreement:11.4f} {one.max_difference:11.2g}"
        print(f"{one.format:10} {one.num_bytes:12,} {shares} {one.milliseconds:8.2f}  {', '.join(one.files)}")
    print(f"{folder} holds them, their manifest and parity.json")
