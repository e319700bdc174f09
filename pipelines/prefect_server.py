import logging
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from os import environ
from pathlib import Path
from typing import Self

from core.errors import UserError
from pipelines.settings import OUTPUTS

_log = logging.getLogger("convoy")

HOST = "127.0.0.1"
START_SECONDS = 120
STOP_SECONDS = 15
PREFECT_FOLDER = OUTPUTS
"""Working directory of Prefect's server. In the workspace, it would read `.env`, and ask for the stack's password."""


class Server:
    """Server process in this Python environment, for the length of a `with` block. The start does not block."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        port: int,
        health: str,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Prepare to start `python -m arguments... --host --port`, which ends with this process in any case.

        The server runs in `folder`, by default in the working directory of this process.

        Raises:
            UserError: the port is in use.

        """
        self.url = f"http://{HOST}:{port}"
        self._name, self._health = name, self.url + health
        self._command = [
            sys.executable,
            "-P",
            "-m",
            "core.tethered",
            *arguments,
            "--host",
            HOST,
            "--port",
            str(port),
        ]
        self._environment = {**environ, **(environment or {})}
        self._folder = folder
        self._log = OUTPUTS / f"{name}-server.log"
        if not _is_free(port):
            raise UserError(f"port {port}, which the {name} server needs, is in use: stop what listens on it")

    def __enter__(self) -> Self:
        """Start the server, with its output in a log. A new session keeps Ctrl-C from the server."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            output = stack.enter_context(self._log.open("w", encoding="utf-8"))
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def wait_until_healthy(self) -> None:
        """Wait until the server answers.

        Raises:
            UserError: the server exited, or did not answer in time. Its log gives the reason.

        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(self._health, timeout=2):  # noqa: S310 - an address of our own
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise UserError(f"the {self._name} server did not start: see {self._log}", exit_code=1)


def next_free_port(name: str, wanted: int, taken: int | None = None) -> int:
    """Return port `wanted`, or the next free port that is not `taken`. Another port is logged.

    Raises:
        UserError: a hundred ports in a row are in use.

    """
    ports = range(wanted, min(wanted + 100, 65536))
    free = next((port for port in ports if port != taken and _is_free(port)), None)
    if free is None:
        raise UserError(f"ports {ports.start} to {ports.stop - 1}, one of which {name} needs, are in use")
    if free != wanted:
        _log.info("up: port %d is in use, %s takes %d", wanted, name, free)
    return free


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
