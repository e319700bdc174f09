"""`convoy up`: the servers of MLflow and Prefect, with flows that users can trigger in Prefect."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import whole_file
from pipelines.config import Config, override
from pipelines.home import serve_home
from pipelines.prefect_server import PREFECT_FOLDER, Server, next_free_port
from pipelines.session import SERVERS_FILE
from pipelines.settings import Settings
from pipelines.workspace import ROOT, open_tracking, settle_runs

OFFERED = (
    *("run_pipeline", "run_if_changed", "prepare_data", "train_model", "package_model", "deploy_model"),
    *("measure_drift", "clean_project"),
)
"""Flows that can be triggered in Prefect."""


def run_servers(config: Config, prefect_port: int, mlflow_port: int, home_port: int) -> None:
    """Start the servers on these ports, or the next free ports, offer the flows, and wait for Ctrl-C."""
    # Prefect's runner gives this warning on SIGTERM, after its processes have ended.
    warnings.filterwarnings("ignore", message="coroutine 'Runner.astop' was never awaited")
    check_schedules(config)
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        start = ["prefect", "server", "start"]
        prefect_port = next_free_port("Prefect", prefect_port)
        prefect = stack.enter_context(Server("prefect", start, prefect_port, "/api/health", folder=PREFECT_FOLDER))
        mlflow_url = Settings().tracking_uri(ROOT)
        if artifacts := Settings().artifacts(ROOT):
            # Create the tables of a new database now: if both servers create them, one server fails.
            open_tracking(config)
            mlflow_port = next_free_port("MLflow", mlflow_port, taken=prefect_port)
            mlflow = stack.enter_context(
                Server("mlflow", _mlflow_arguments(mlflow_url, artifacts), mlflow_port, "/health")
            )
            mlflow.wait_until_healthy()
            mlflow_url = mlflow.url
        prefect.wait_until_healthy()
        os.environ["PREFECT_API_URL"] = f"{prefect.url}/api"
        stack.enter_context(_announced(f"{prefect.url}/api"))
        links = {"MLflow": mlflow_url, "Prefect": prefect.url}
        home_port = next_free_port("Convoy's page", home_port)
        home = stack.enter_context(serve_home(config, home_port, links))
        print(f"Convoy   {home}    what is live, the champion, the last runs, the ledger")
        print(f"Prefect  {prefect.url}    trigger run-pipeline under Deployments")
        print(f"MLflow   {mlflow_url}    runs, metrics, models")
        print("Ctrl-C stops all; `convoy run` in another terminal shows up here.", flush=True)
        offer_flows(config)


def check_schedules(config: Config) -> None:
    """Apply the overrides of each schedule, before any server starts.

    Raises:
        UserError: one is not what is expected; says of which schedule.

    """
    for one in config.automation.schedules:
        try:
            override(config, one.overrides)
        except UserError as error:
            raise UserError(f"automation.schedules, {one.name}: {error}") from None


def _mlflow_arguments(database: str, artifacts: Path) -> list[str]:
    location = ["--default-artifact-root", artifacts.resolve().as_uri(), "--no-serve-artifacts"]
    return ["mlflow", "server", "--backend-store-uri", database, *location, "--workers", "1"]


def offer_flows(config: Config, **runner: Any) -> None:
    """Serve the flows with this configuration as default, until interrupted. `runner`: options of Prefect's runner."""
    check_schedules(config)
    settle_runs(config)
    from prefect import serve
    from prefect.types.entrypoint import EntrypointType

    from pipelines import flows
    from pipelines.operations.triggers import forget_schedules, on_data_event, scheduled, start_if_changed
    from pipelines.operations.watch import watching

    parameters = {"config": config.model_dump(mode="json")}
    offered = [getattr(flows, name) for name in OFFERED]
    triggers = {flows.run_if_changed.name: [on_data_event()]}
    # By module, because the tool's files are not in the project's folder.
    place = EntrypointType.MODULE_PATH
    deployments: list[Any] = [
        flow.to_deployment(
            flow.name, parameters=parameters, triggers=triggers.get(flow.name, []), entrypoint_type=place
        )
        for flow in offered
    ]
    deployments += scheduled(config, offered)
    forget_schedules(config)
    with watching(config, start_if_changed):
        # One flow at a time, because a workspace has one set of files.
        serve(*deployments, print_starting_message=False, limit=1, **runner)


@contextmanager
def _announced(prefect_api_url: str) -> Iterator[None]:
    """Announce the server to other commands in this workspace."""
    with whole_file(SERVERS_FILE) as temporary:
        temporary.write_text(json.dumps({"pid": os.getpid(), "prefect_api_url": prefect_api_url}), encoding="utf-8")
    try:
        yield
    finally:
        SERVERS_FILE.unlink(missing_ok=True)
