"""The `convoy` command. Heavy modules are imported only by commands that need them, so `convoy --help` is fast."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from core.errors import UserError
from pipelines.commands.card import card
from pipelines.commands.compare import compare
from pipelines.commands.cost import cost
from pipelines.commands.data import data_app
from pipelines.commands.deploy import approve, deploy, ledger, promote, rollback, token
from pipelines.commands.doctor import doctor
from pipelines.commands.drift import drift, samples_app
from pipelines.commands.export import export
from pipelines.commands.guarded import Guarded
from pipelines.commands.help import MODELS, PIPELINE, PROJECT, SERVERS, SERVING, examples
from pipelines.commands.lineage import lineage
from pipelines.commands.notify import notify_app
from pipelines.commands.operations import backup, clean, restore
from pipelines.commands.options import (
    AsJson,
    Overrides,
    Target,
    all_typed_here,
    enter_project,
    start,
    start_with_images,
    typed_here,
)
from pipelines.commands.project import explain, init, params
from pipelines.commands.reproduce import reproduce

app = typer.Typer(
    cls=Guarded,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Labelled images in; a versioned, tested, measured endpoint out.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from core.tool import tool_version

        print(f"convoy {tool_version()}")
        raise typer.Exit


@app.callback(epilog=examples("convoy init birds --path ~/photos", "convoy --project birds run", "convoy run --help"))
def options(
    context: typer.Context,
    project: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The project to work in; else the current folder.", show_default=False),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback ends the command
        bool, typer.Option("--version", help="Print the version of Convoy.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Take the options that stand before a command."""
    if project:
        enter_project(context, project)


app.add_typer(data_app, name="data", rich_help_panel=PIPELINE)
app.add_typer(notify_app, name="notify", rich_help_panel=PROJECT)
app.add_typer(samples_app, name="samples", rich_help_panel=SERVING)


@app.command(
    rich_help_panel=PIPELINE,
    epilog=examples(
        "convoy run",
        "convoy run --set training.max_epochs=3",
        "convoy run --set data.source=folder --set data.path=~/photos",
    ),
)
def run(overrides: Overrides = None) -> None:
    """Bring everything up to date: prepare, train, evaluate, register, judge, package and verify."""
    config = start_with_images(overrides, "run: looks for what is not up to date")
    from pipelines.commands.status import print_run
    from pipelines.session import run_flow

    print_run(run_flow("run_pipeline", config), config)


@app.command(rich_help_panel=PIPELINE)
def suggest(as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Suggest settings for the prepared images on this machine, with the duration of each training."""
    start(overrides, says="suggest: times a few batches on this machine")
    from pipelines.commands.suggest import print_suggestions

    print_suggestions(overrides or [], as_json=as_json)


@app.command(rich_help_panel=PIPELINE, epilog=examples("convoy train --set model.network=resnet18"))
def train(overrides: Overrides = None) -> None:
    """Train on the prepared data, and submit the model to the gate."""
    config = start(overrides, says="train: looks for what is not up to date")
    from pipelines.session import run_flow
    from pipelines.workspace import require_data_version

    run_flow("train_model", config, require_data_version())


@app.command(rich_help_panel=MODELS, epilog=examples("convoy evaluate --json"))
def evaluate(as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Measure the champion on today's test images."""
    config = start(overrides, says="evaluate: asks MLflow for the champion")
    from models.judging.gate import measure_model
    from models.judging.metrics import evaluate as measure
    from pipelines.workspace import PREPARED, RAW, require_champion

    _, folder = require_champion(config)
    evaluation = measure(measure_model(folder, RAW, PREPARED), config.evaluation.metrics)
    if as_json:
        print(evaluation.model_dump_json(indent=1))
        return
    for name, value in evaluation.metrics.items():
        print(f"{name:28} {value:.4f}")


@app.command(rich_help_panel=PIPELINE, epilog=examples("convoy package --target edge --containerize"))
def package(
    target: Target = None,
    containerize: Annotated[bool, typer.Option("--containerize", help="Build its container image too.")] = False,
    platform: Annotated[str | None, typer.Option(help="Of the image: linux/amd64 or linux/arm64.")] = None,
    overrides: Overrides = None,
) -> None:
    """Package the champion as a Bento, and verify its answer to a test image."""
    if platform and not containerize:
        raise UserError("--platform is of a container image: say --containerize too")
    config = start(overrides, target, says="package: asks MLflow for the champion")
    from pipelines.session import run_flow, run_task

    bento = run_flow("package_model", config)
    print(bento.tag)
    if containerize:
        print(run_task("containerize", config, bento, platform).tag)


@app.command(
    rich_help_panel=SERVING,
    epilog=examples("convoy serve --port 3000", "curl -F image=@photo.jpg http://127.0.0.1:3000/classify"),
)
def serve(
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one.")] = None,
    target: Target = None,
    overrides: Overrides = None,
) -> None:
    """Serve the champion until Ctrl-C."""
    values = [*(overrides or []), *([] if port is None else [f"serving.port={port}"])]
    config = start(values, target, says="serve: asks MLflow for the champion")
    from pipelines.workspace import pack_champion
    from serving.packaging.local_endpoint import serve as serve_bento

    raise typer.Exit(serve_bento(pack_champion(config), config.serving))


@app.command(
    rich_help_panel=MODELS, epilog=examples("convoy predict photo.jpg", "convoy predict ~/photos --csv answers.csv")
)
def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILE|FOLDER...", help="Images, or folders of them.", callback=all_typed_here),
    ],
    as_json: AsJson = False,
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="The table to write instead.", callback=typed_here)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Classify images with the champion, without an endpoint."""
    if as_json and table:
        raise UserError("--json and --csv are two forms of one answer: say one of them")
    config = start(overrides, says="predict: asks MLflow for the champion")
    from pipelines.commands.predict import check_table, find_images, predict_files
    from pipelines.workspace import require_champion

    if table:
        check_table(table)
    files = find_images(paths)
    _, folder = require_champion(config)
    raise typer.Exit(predict_files(folder, files, config.serving.top_k, as_json=as_json, table=table))


@app.command(rich_help_panel=PROJECT, epilog=examples("convoy status --json"))
def status(as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Show data, champion, Bentos and live releases."""
    config = start(overrides)
    from pipelines.commands.status import collect_status, print_status

    found = collect_status(config)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print_status(found)


ELSEWHERE: list[tuple[str, Callable[..., None], tuple[str, ...]]] = [
    (MODELS, compare, ("convoy compare", "convoy compare 2 3 --html comparison.html")),
    (MODELS, cost, ("convoy cost resnet18", "convoy cost --html cost.html")),
    (MODELS, export, ("convoy export --to edge", "convoy export 3 --format c --to device")),
    (MODELS, promote, ('convoy promote 3 --why "checked by hand"',)),
    (MODELS, approve, ('convoy approve 3 --why "looked at what it breaks"',)),
    (MODELS, reproduce, ("convoy reproduce 5f0c21a7",)),
    (PROJECT, doctor, ("convoy doctor",)),
    (MODELS, drift, ("convoy drift ~/from-this-week",)),
    (SERVING, deploy, ("convoy deploy --target cpu --canary 10",)),
    (SERVING, rollback, ('convoy rollback --why "too slow"',)),
    (SERVING, token, ("convoy token shop",)),
    (SERVING, ledger, ("convoy ledger --target cpu --json", "convoy ledger --verify")),
    (MODELS, card, ("convoy card", "convoy card 3 --html card.html")),
    (MODELS, lineage, ("convoy lineage champion", "convoy lineage cpu --json")),
    (PROJECT, init, ("convoy init birds --path ~/photos",)),
    (PIPELINE, explain, ("convoy explain", "convoy explain --set training.max_epochs=3 --json")),
    (PROJECT, clean, ("convoy clean --dry-run",)),
    (PROJECT, backup, ("convoy backup /mnt/backup/birds-2026-12-01",)),
    (PROJECT, restore, ("convoy restore /mnt/backup/birds-2026-12-01",)),
    (PROJECT, params, ("convoy params", "convoy params --changed")),
]
"""Commands that have a file of their own: their heading, and examples to type."""

for _heading, _command, _lines in ELSEWHERE:
    app.command(rich_help_panel=_heading, epilog=examples(*_lines))(_command)


@app.command(rich_help_panel=SERVERS, epilog=examples("convoy up --mlflow-port 5001"))
def up(
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Of Prefect's page.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Of MLflow's page.")] = 5000,
    home_port: Annotated[int, typer.Option(min=1, max=65535, help="Of Convoy's page.")] = 4000,
    overrides: Overrides = None,
) -> None:
    """Serve Convoy's page, MLflow and Prefect, and offer the flows in Prefect, until Ctrl-C."""
    config = start(overrides, says="up: starts the servers, which takes some seconds")
    from pipelines.commands.up import run_servers

    run_servers(config, prefect_port, mlflow_port, home_port)


@app.command(rich_help_panel=SERVERS)
def worker(overrides: Overrides = None) -> None:
    """Run the flows that users trigger on the Prefect server at PREFECT_API_URL, until SIGTERM."""
    config = start(overrides, says="worker: loads Prefect")
    from pipelines.commands.worker import run_worker

    run_worker(config)


def main() -> None:
    """Entry point of the command line."""
    app(prog_name="convoy")
