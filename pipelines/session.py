"""Runs a flow for a command: locks the workspace, and provides a Prefect server for the records."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.config import Config
from pipelines.prefect_server import PREFECT_FOLDER, Server, free_port
from pipelines.settings import OUTPUTS
from pipelines.workspace import exclusive

SERVERS_FILE = OUTPUTS / "servers.json"
"""Written by `convoy up` while its servers run."""

DRAIN_SECONDS = 10

TEMPORARY = {
    "PREFECT_UI_ENABLED": "false",
    # With the default batches, records of the last seconds are lost when the server stops.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}


def run_flow(name: str, config: Config, *arguments: Any) -> Any:
    """Run a flow in this process, and return its result."""
    with exclusive(), _prefect_server() as wait_for_server:
        # These imports take seconds. Meanwhile, the server starts on another core.
        from pipelines import flows

        wait_for_server()
        with _settings():
            return getattr(flows, name)(config, *arguments)


def run_task(name: str, config: Config, *arguments: Any) -> Any:
    """Run one task without a flow and without records."""
    with exclusive():
        from pipelines import tasks

        return getattr(tasks, name).fn(config, *arguments)


@contextmanager
def _prefect_server() -> Iterator[Callable[[], None]]:
    """Use the server of the environment or of `convoy up`, or start one for the length of the block.

    Prefect's own temporary server would start later, and lose records when it stops. It would also be imported into
    this process, which takes longer than a run that has nothing to do.
    """
    if "PREFECT_API_URL" not in os.environ and (url := running_server()):
        os.environ["PREFECT_API_URL"] = url
    if "PREFECT_API_URL" in os.environ:
        yield lambda: None
        return
    uvicorn = ["uvicorn", "--factory", "prefect.server.api.server:create_app", "--log-level", "error"]
    with Server("prefect", uvicorn, free_port(), "/api/health", environment=TEMPORARY, folder=PREFECT_FOLDER) as server:
        os.environ["PREFECT_API_URL"] = f"{server.url}/api"
        try:
            yield server.wait_until_healthy
        finally:
            _send_records()
            del os.environ["PREFECT_API_URL"]


@contextmanager
def _settings() -> Iterator[None]:
    """Settings of this flow. Prefect read the environment at its first import, maybe for another server.

    A flow in the command's own process needs no heartbeat. To end each heartbeat would take a second.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"], PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _send_records() -> None:
    """Let Prefect send its remaining records. After the server has stopped, Prefect would retry for a minute."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=DRAIN_SECONDS)
    EventsWorker.drain_all(timeout=DRAIN_SECONDS)


def running_server() -> str | None:
    """Give the address of the Prefect server of a `convoy up` that runs here."""
    if not SERVERS_FILE.is_file():
        return None
    servers = json.loads(SERVERS_FILE.read_text(encoding="utf-8"))
    try:
        os.kill(servers["pid"], 0)
    except OSError:
        return None
    return str(servers["prefect_api_url"])
