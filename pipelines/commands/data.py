"""`convoy data ...`: the commands for images."""

import json
from pathlib import Path
from typing import Annotated

import typer

from core.errors import UserError
from pipelines.commands.options import AsJson, Overrides, start, start_with_images, typed_here

data_app = typer.Typer(no_args_is_help=True, help="Prepare the images and look at them.", rich_markup_mode=None)


@data_app.command("ingest")
def data_ingest(overrides: Overrides = None) -> None:
    """Read the source into data/raw."""
    config = start_with_images(overrides, "ingest: looks at the source")
    from pipelines.session import run_task

    run_task("reproduce_data", config, "ingest")


@data_app.command("prepare")
def data_prepare(overrides: Overrides = None) -> None:
    """Ingest and prepare the images, push them to the DVC remote, and report on them."""
    config = start_with_images(overrides, "prepare: looks at the source")
    from pipelines.session import run_flow

    run_flow("prepare_data", config)


@data_app.command("report")
def data_report(
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(help="The page with pictures to write instead.", callback=typed_here)
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Look for probably wrong labels too, and show them on the page.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Report what the prepared data holds, and which images were left out and why."""
    if labels and not html:
        raise UserError("--labels is of the page with pictures: say --html FILE too")
    config = start(overrides)
    from data.quality.report import as_markdown
    from data.quality.report import data_report as make_report
    from pipelines.workspace import PREPARED, RAW

    if html:
        from data.quality.page import quality_page

        doubts = None
        if labels:
            from pipelines.label_errors import find_wrong_labels

            doubts = find_wrong_labels(config)
        html.write_text(quality_page(PREPARED, doubts, RAW), encoding="utf-8")
        print(html)
        return
    report = make_report(PREPARED)
    print(json.dumps(report, indent=1, ensure_ascii=False) if as_json else as_markdown(report))


@data_app.command("preview")
def data_preview(
    out: Annotated[
        Path | None, typer.Option(help="The picture to write; else outputs/preview.png.", callback=typed_here)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Draw training images beside their augmented variants."""
    config = start(overrides, says="preview: loads PyTorch")
    from models.training.preview import preview_augmentation
    from models.training.train import build_classifier
    from pipelines.settings import OUTPUTS
    from pipelines.workspace import training_job

    out = out or OUTPUTS / "preview.png"
    job = training_job(config, "")
    picture = preview_augmentation(job, build_classifier(job))
    if out.suffix[1:] not in picture.canvas.get_supported_filetypes():
        raise UserError(f"--out {out}: expected the name of a picture, such as preview.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(out)
    print(out)
