"""`convoy worker`: runs the flows that users trigger on a Prefect server, in this workspace, until SIGTERM."""

import logging
import os
import time
import urllib.error
import urllib.request
import warnings
from contextlib import suppress
from datetime import timedelta

from core.errors import UserError
from pipelines.commands.up import offer_flows
from pipelines.config import Config
from pipelines.settings import OUTPUTS, Settings
from pipelines.workspace import ROOT

WAIT_SECONDS = 600
HEARTBEAT_SECONDS = 30
"""Prefect's minimum."""

ZOMBIES = "convoy: a run without heartbeats has crashed"

_log = logging.getLogger("convoy")


def run_worker(config: Config) -> None:
    """Wait for the servers, offer the flows with this configuration as default, and run triggered flows.

    Raises:
        UserError: PREFECT_API_URL is not set, or a server does not answer.

    """
    settings = Settings()
    if not settings.prefect_api_url:
        raise UserError("a worker needs a server: set PREFECT_API_URL (or use `convoy up`)")
    # Prefect creates its home in this folder, but not the folder itself.
    OUTPUTS.mkdir(exist_ok=True)
    # Prefect's log lines belong to this process's output, which is the container's log.
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
    # Prefect's runner gives this warning on SIGTERM, after its processes have ended.
    warnings.filterwarnings("ignore", message="coroutine 'Runner.astop' was never awaited")
    with suppress(KeyboardInterrupt):
        wait_until_it_answers("Prefect", f"{settings.prefect_api_url.rstrip('/')}/ready")
        tracking = settings.tracking_uri(ROOT)
        if tracking.startswith("http"):
            wait_until_it_answers("MLflow", f"{tracking.rstrip('/')}/health")
        _crash_what_has_no_heartbeat()
        _log.info("worker: waits for runs of %s", settings.prefect_api_url)
        # The runner's web server serves the health check.
        offer_flows(config, webserver=True, heartbeat_seconds=HEARTBEAT_SECONDS)


def wait_until_it_answers(name: str, url: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait for a server that may still be starting.

    Raises:
        UserError: the server did not answer in time.

    """
    deadline, told = time.monotonic() + seconds, False
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - an address that the user has set
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise UserError(f"{name} does not answer at {url}: {error}", exit_code=1) from None
            if not told:
                _log.info("worker: waits for %s at %s: %s", name, url, error)
                told = True
            time.sleep(1)


def _crash_what_has_no_heartbeat() -> None:
    """Let the server end runs whose worker has died, because they would be "Running" forever."""
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    with suppress(ValueError):
        # Returns a coroutine only inside an event loop.
        Automation.read(name=ZOMBIES)  # type: ignore[unused-coroutine]
        return
    beat = "prefect.flow-run.heartbeat"
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    trigger = EventTrigger(
        after={beat},
        expect={beat, *ends},
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=4 * HEARTBEAT_SECONDS),
    )
    action = ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat: its worker has died")
    Automation(name=ZOMBIES, trigger=trigger, actions=[action]).create()
