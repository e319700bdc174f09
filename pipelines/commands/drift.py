"""`convoy drift`: whether images from use differ from those that the champion was measured on."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import AsJson, Overrides, all_typed_here, start


def drift(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE|FOLDER...]",
            help="Images from use, or folders of them; else what endpoints here have sampled.",
            callback=all_typed_here,
        ),
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Compare images with the champion's test images; exit status 3 where they have drifted."""
    config = start(overrides, says="drift: asks MLflow for the champion")
    from pipelines.commands.predict import find_images
    from pipelines.workspace import require_champion

    files = find_images(paths or [])
    _, folder = require_champion(config)
    from pipelines.operations.drift import measure_drift

    found = measure_drift(folder, files)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        for one in found.alarms or found.differences[:1]:
            print(f"{one.name}: {one.before:.3f} -> {one.now:.3f}, p {one.p_value:.2g}")
        verdict = f"{len(found.alarms)} measures have drifted" if found.alarms else "no drift"
        against = f"{found.num_images:,} images against {found.num_test_images:,} test images"
        print(f"{verdict}: {against}, alarm below p {found.threshold:.2g}")
    raise typer.Exit(3 if found.alarms else 0)


samples_app = typer.Typer(no_args_is_help=True, help="What endpoints have sampled.", rich_markup_mode=None)


@samples_app.command("list")
def samples_list() -> None:
    """List the samples that `convoy serve` has kept here, a line for each day and model."""
    from pipelines.operations.samples import SAMPLES

    for path in sorted(SAMPLES.glob("*.npz")):
        print(f"{path.stem}  {path.stat().st_size / 1e6:.1f} MB")


@samples_app.command("purge")
def samples_purge(
    days: Annotated[float, typer.Option(min=0, help="Keep the samples of so many days; else none.")] = 0,
) -> None:
    """Remove samples now; an endpoint that runs keeps those of today in memory, and writes them again."""
    import time

    from pipelines.operations.samples import SAMPLES
    from serving.endpoint.samples import remove_old

    # One day more than today: all of it.
    removed = remove_old(SAMPLES, days if days else -1, time.time())
    print(f"removed {len(removed)} files of samples from {SAMPLES}")
