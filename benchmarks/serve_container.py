"""Endpoint in a container, controlled by Docker's client."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from benchmarks.serve_load import answers
from core.errors import UserError
from serving.packaging.image import Image
from serving.rollout.docker import docker
from serving.targets import Target

READY_SECONDS = 120
OPEN = ("--env", "CONVOY_ALLOW_ANONYMOUS=true")
"""Options of a container without tokens."""


@dataclass(frozen=True)
class Container:
    """Container of an endpoint, as in production: confined, with the limits of its target."""

    id: str
    port: int
    """port on 127.0.0.1"""
    start_seconds: float
    """time from the start command until the endpoint is ready"""

    @property
    def url(self) -> str:
        """Address of the endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def run(self, *command: str) -> str:
        """Run a command in the container, and return its output."""
        return docker("exec", self.id, *command)

    def log(self) -> str:
        """Return the container's log."""
        return docker("logs", self.id, with_errors=True)

    def state(self) -> dict[str, object]:
        """Return the container's state, as Docker reports it."""
        return dict(json.loads(docker("inspect", "--format", "{{json .State}}", self.id)))

    def memory_bytes(self) -> int:
        """Return the resident memory of the container's processes."""
        _, *lines = docker("top", self.id, "-o", "pid,rss").splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines)


@contextmanager
def container(image: Image, target: Target, *options: str, ready: bool = True) -> Iterator[Container]:
    """Start a container, wait until it is `ready`, and remove it after the block.

    Raises:
        RuntimeError: the container does not become ready. The message has its log.

    """
    limits = ("--memory", f"{target.memory_mb}m", "--memory-swap", f"{target.memory_mb}m", "--cpus", str(target.cpus))
    confined = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    name = docker("create", "--publish", "127.0.0.1::3000", *limits, *confined, *options, image.tag)
    try:
        start = time.perf_counter()
        docker("start", name)
        started = Container(name, _port(name), 0)
        if ready:
            _wait(started, start)
        yield Container(name, started.port, time.perf_counter() - start)
    finally:
        docker("rm", "--force", "--volumes", name)


def _port(name: str) -> int:
    with suppress(UserError):
        return int(docker("port", name, "3000").rpartition(":")[2])
    return 0  # the container has exited already


def _wait(started: Container, start: float) -> None:
    while not answers(started.port, "/readyz"):
        if not started.state()["Running"] or time.perf_counter() - start > READY_SECONDS:
            raise RuntimeError(f"the container does not become ready: {started.log()[-2000:]}")
        time.sleep(0.01)
