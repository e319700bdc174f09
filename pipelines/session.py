import json
import os
from typing import Any

from pipelines.config import Config
from pipelines.settings import OUTPUTS
from pipelines.workspace import exclusive

SERVERS_FILE = OUTPUTS / "servers.json"
"""Written by `convoy up` while its servers run."""


def run_flow(name: str, config: Config, *arguments: Any) -> Any:
    """Run a flow in this process, on the server of `convoy up` where one runs, else on one of its own."""
    with exclusive():
        _use_running_server()
        from pipelines import flows

        return getattr(flows, name)(config, *arguments)


def run_task(name: str, config: Config, *arguments: Any) -> Any:
    """Run one task by itself, unrecorded."""
    with exclusive():
        from pipelines import tasks

        return getattr(tasks, name).fn(config, *arguments)


def _use_running_server() -> None:
    if SERVERS_FILE.is_file() and "PREFECT_API_URL" not in os.environ:
        servers = json.loads(SERVERS_FILE.read_text(encoding="utf-8"))
        if _is_alive(servers["pid"]):
            os.environ["PREFECT_API_URL"] = servers["prefect_api_url"]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
