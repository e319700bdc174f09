"""Containers of the classifiers, started by Docker Compose."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import whole_file
from serving.endpoint.answers import NOT_READY
from serving.rollout.docker import docker
from serving.rollout.gateway import Gateway
from serving.rollout.ledger import Release

COMPOSE_FILE = "docker-compose.yml"
ENVIRONMENT_FILE = ".env"
LOG_LINES = 15

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class Container:
    """Container of a classifier, as Docker reports it."""

    id: str
    name: str
    release: Release
    status: str
    """created, running, restarting, exited, ..."""
    health: str
    """starting, healthy or unhealthy; empty if the image has no health check"""
    num_restarts: int
    refuses_model: bool = False
    """whether the last health check found a model that cannot be served; waiting does not help"""

    @property
    def is_up(self) -> bool:
        """Whether the container runs and is not unhealthy."""
        return self.status == "running" and self.health != "unhealthy"

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> "Container":
        """Read one object of `docker inspect`."""
        state = found["State"]
        release = Release.from_labels(found["Config"]["Image"], found["Image"], found["Config"]["Labels"] or {})
        health = state.get("Health", {})
        return cls(
            found["Id"],
            found["Name"].strip("/"),
            release,
            state["Status"],
            health.get("Status", ""),
            found["RestartCount"],
            _refuses_model(health),
        )


def _refuses_model(health: Mapping[str, Any]) -> bool:
    """Whether the last output of `healthcheck.py` is `not_ready`: the endpoint cannot serve its model."""
    try:
        return bool(json.loads(health["Log"][-1]["Output"])["error"] == NOT_READY)
    except (LookupError, TypeError, ValueError):
        return False


def name_of(target: str, release: Release) -> str:
    """Return the name of a release in the gateway's routes. All containers of the release share this name."""
    return f"{target}-{release.image_id.removeprefix('sha256:')[:12]}"


def read_release(image: str, target: str) -> Release:
    """Read the release that an image holds.

    Raises:
        UserError: the image is missing, or was built for another target.

    """
    if not docker("image", "ls", "--quiet", image):
        raise UserError(f"the image {image} is not here any more", exit_code=1)
    (found,) = json.loads(docker("image", "inspect", image))
    labels = found["Config"]["Labels"] or {}
    if labels.get("convoy.target", target) != target:
        raise UserError(f"{image} is for {labels['convoy.target']}, not for {target}")
    return Release.from_labels(image, found["Id"], labels)


def restore_image(release: Release) -> None:
    """Make sure that the image of a release exists under its tag.

    Raises:
        UserError: the image was removed.

    """
    try:
        docker("image", "inspect", "--format", "{{.Id}}", release.image_id)
    except UserError:
        raise UserError(
            f"the image of {release} is not here any more: build and deploy that version with "
            f"`convoy deploy --version {release.model_version or 'N'}`",
            exit_code=1,
        ) from None
    docker("tag", release.image_id, release.image)


class Project:
    """Docker Compose project in a folder."""

    def __init__(self, folder: Path) -> None:
        """Use the compose file in `folder`.

        Raises:
            UserError: the compose file or `.env` is missing, or no Docker engine answers.

        """
        self.folder = folder
        for name, remedy in (
            (COMPOSE_FILE, "the stack is that of a clone of Convoy, which `convoy --project CLONE` names"),
            (ENVIRONMENT_FILE, "say `make env`"),
        ):
            if not (folder / name).is_file():
                raise UserError(f"there is no {name} in {folder.resolve()}: {remedy}")
        docker("version", "--format", "{{.Server.Version}}")

    def gateway(self) -> Gateway:
        """Return the gateway. Start the gateway if it is not running."""
        self._compose("up", "--detach", "--no-deps", "--no-recreate", "--wait", "gateway")
        return Gateway(self._compose("ps", "--quiet", "gateway"))

    def running_gateway(self) -> Gateway | None:
        """Return the gateway, or None if it is not running."""
        found = self._compose("ps", "--quiet", "--status=running", "gateway")
        return Gateway(found) if found else None

    def containers(self, target: str) -> list[Container]:
        """Return the containers of a target, in any state."""
        found = self._compose("ps", "--all", "--quiet", target).split()
        return [Container.read(one) for one in json.loads(docker("inspect", *found))] if found else []

    def start_beside(self, target: str, release: Release, num_new: int) -> list[Container]:
        """Start `num_new` containers of a release and return them. Existing containers are not touched."""
        before = {container.id for container in self.containers(target)}
        scale = f"--scale={target}={len(before) + num_new}"
        self._compose(
            *("up", "--detach", "--no-deps", "--no-recreate", "--no-build", scale, target),
            environment=_variables(target, release),
        )
        return [container for container in self.containers(target) if container.id not in before]

    def remember(self, target: str, release: Release) -> None:
        """Write a release into `.env`, so that `docker compose up` starts this release."""
        path = self.folder / ENVIRONMENT_FILE
        left = _variables(target, release)
        lines = path.read_text(encoding="utf-8").splitlines()
        for index, line in enumerate(lines):
            name = line.partition("=")[0].strip()
            if name in left:
                lines[index] = f"{name}={left.pop(name)}"
        lines += [f"{name}={value}" for name, value in left.items()]
        with whole_file(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")

    def _compose(self, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        return docker("compose", "--project-directory", str(self.folder), *arguments, environment=environment)


def _variables(target: str, release: Release) -> dict[str, str]:
    prefix = f"CONVOY_{target.upper()}"
    return {f"{prefix}_IMAGE": release.image, f"{prefix}_NAME": name_of(target, release)}


def wait_until_ready(containers: Sequence[Container], seconds: float) -> None:
    """Wait until all containers are healthy.

    Raises:
        UserError: a container exited, is unhealthy, or was not ready in time. The message has the end of its log.

    """
    give_up = time.monotonic() + seconds
    while True:
        found = [Container.read(one) for one in json.loads(docker("inspect", *(one.id for one in containers)))]
        for container in found:
            if fault := _fault(container):
                raise UserError(f"{container.name} {fault}{log_tail(container)}", exit_code=1)
        if all(container.health == "healthy" for container in found):
            return
        if time.monotonic() > give_up:
            raise UserError(f"{found[0].name} was not ready after {seconds:g} seconds{log_tail(found[0])}", exit_code=1)
        time.sleep(0.3)


def _fault(container: Container) -> str:
    if container.status != "running" or container.num_restarts:
        return "ended before it was ready"
    if not container.health:
        return "has no test of its health: its image was not built by `convoy`"
    if container.refuses_model:
        return "cannot serve its model"
    return "is not healthy" if container.health == "unhealthy" else ""


def log_tail(container: Container) -> str:
    """Return the last lines of a container's log, as the end of a message."""
    lines = docker("logs", f"--tail={LOG_LINES}", container.id, with_errors=True)
    return f":\n{lines}" if lines else "; it logged nothing"


def remove(containers: Sequence[Container]) -> None:
    """Stop and remove containers. Requests in flight finish first."""
    if containers:
        docker("stop", *(container.id for container in containers))
        docker("rm", "--force", *(container.id for container in containers))
