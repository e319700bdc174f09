"""`convoy up`: the two servers whose pages a team looks at, and the flows that can be triggered there."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.stage import whole_file
from pipelines.config import Config
from pipelines.session import SERVERS_FILE
from pipelines.settings import OUTPUTS, Settings
from pipelines.workspace import ROOT, open_tracking

HOST = "127.0.0.1"
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
START_SECONDS = 120
STOP_SECONDS = 15


def run_servers(config: Config) -> None:
    """Start the servers, offer the flows, and wait for Ctrl-C."""
    prefect_url, mlflow_url = f"http://{HOST}:{PREFECT_PORT}", f"http://{HOST}:{MLFLOW_PORT}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        prefect = ["prefect", "server", "start", "--host", HOST, "--port", str(PREFECT_PORT)]
        stack.enter_context(_server("prefect", prefect, PREFECT_PORT, f"{prefect_url}/api/health"))
        if Settings().mlflow_tracking_uri is None:
            open_tracking(config)
            stack.enter_context(_server("mlflow", _mlflow_command(), MLFLOW_PORT, f"{mlflow_url}/health"))
        os.environ["PREFECT_API_URL"] = f"{prefect_url}/api"
        stack.enter_context(_announced(f"{prefect_url}/api"))
        print(f"Prefect  {prefect_url}    trigger run-pipeline under Deployments")
        print(f"MLflow   {Settings().mlflow_tracking_uri or mlflow_url}    runs, metrics, models")
        print("Ctrl-C stops both; `convoy run` in another terminal shows up here.", flush=True)
        _offer_flows(config)


def _mlflow_command() -> list[str]:
    uri, artifacts = Settings().tracking_uri(ROOT), Settings().artifacts(ROOT)
    assert artifacts is not None
    location = artifacts.resolve().as_uri()
    return [
        "mlflow", "server", "--backend-store-uri", uri, "--default-artifact-root", location, "--no-serve-artifacts",
        "--host", HOST, "--port", str(MLFLOW_PORT), "--workers", "1",
    ]  # fmt: skip


def _offer_flows(config: Config) -> None:
    """Serve the flows with the current configuration as defaults, until interrupted."""
    from prefect import serve

    from pipelines import flows

    parameters = {"config": config.model_dump(mode="json")}
    offered = (flows.run_pipeline, flows.prepare_data, flows.package_model)
    deployments: list[Any] = [flow.to_deployment(flow.name, parameters=parameters) for flow in offered]
    # One at a time: a workspace has one set of files.
    serve(*deployments, print_starting_message=False, limit=1)


@contextmanager
def _server(name: str, command: list[str], port: int, health: str) -> Iterator[None]:
    """Run a server of this environment, its output in a log; stop it by its own process id."""
    _require_free(port, name)
    log = OUTPUTS / f"{name}-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).parent / command[0]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [str(program), *command[1:]], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait_until_healthy(process, health, name, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _require_free(port: int, name: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise UserError(f"port {port}, which the {name} server needs, is in use: stop what listens on it") from None


def _wait_until_healthy(process: "subprocess.Popen[bytes]", health: str, name: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(health, timeout=2):  # noqa: S310 - an address of our own
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise UserError(f"the {name} server did not start: see {log}", exit_code=1)


@contextmanager
def _announced(prefect_api_url: str) -> Iterator[None]:
    """Let other commands in this workspace find the server."""
    with whole_file(SERVERS_FILE) as temporary:
        temporary.write_text(json.dumps({"pid": os.getpid(), "prefect_api_url": prefect_api_url}), encoding="utf-8")
    try:
        yield
    finally:
        SERVERS_FILE.unlink(missing_ok=True)
