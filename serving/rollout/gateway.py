"""Routes of the gateway: which release of a target gets which share of the requests. A change loses no request.

A plain reload of nginx would lose requests: old workers close idle connections, on which the next request may already
be on its way. Therefore every answer closes its connection before the old workers end.
"""

import ipaddress
import json
import logging
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from core.errors import UserError
from core.sections import Section
from serving.config import ServingConfig
from serving.rollout.canary import Answered
from serving.rollout.docker import docker, explain
from serving.targets import TARGETS

TEMPLATE = Path(__file__).parents[1] / "stack/gateway/routes.conf.j2"
CONFIGURATION = "/etc/nginx/gateway/nginx.conf"
ACTIVE = "/etc/nginx/routes/active.conf"
NEXT = "/etc/nginx/routes/next"
STATE = "/tmp"  # noqa: S108 - of the gateway's container, in memory
CLOSING = f"{STATE}/closing"
TRIAL = f"{STATE}/trial.conf"
LOCK = f"{STATE}/lock"
HELD = 75
"""Exit status of `flock` if another command holds the lock."""
SPARE_SECONDS = 5
"""The gateway times out this many seconds after the classifier's own deadline."""
CHANGE_SECONDS = 120

# Wait until no connection is idle. nginx closes idle connections after 10 seconds.
CLOSE = f"""
touch {CLOSING}
for _ in $(seq 110); do
    curl -fs http://127.0.0.1:8081/connections | grep -q 'Waiting: 0' && break
    sleep 0.1
done
"""
# Wait until the old workers have answered their last requests and exited.
RELOAD = f"""
workers=$(grep -lz '^nginx: worker' /proc/[0-9]*/cmdline | cut -d/ -f3)
nginx -q -c {CONFIGURATION} -s reload || exit 1
for _ in $(seq 700); do
    alive=
    for worker in $workers; do [ -d /proc/$worker ] && alive=yes; done
    [ $alive ] || break
    sleep 0.1
done
"""

_log = logging.getLogger("convoy")


def _check_network(text: str) -> str:
    """Accept an IPv4 or IPv6 address, or a network with its prefix."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(f"expected an address or a network, such as 10.0.0.7 or 10.0.0.0/8, not {text}") from None


class GatewayConfig(Section):
    """Limits of the gateway for each client. The next `convoy deploy` applies a change."""

    max_connections: int = Field(128, ge=1)
    """maximum number of requests in flight from one address; further requests get status 429"""
    max_requests_per_second: int = Field(1000, ge=1)
    """maximum number of requests per second from one address; further requests get status 429"""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_check_network)], ...] = ()
    """addresses of proxies in front of the gateway, such as [10.0.0.7]; their X-Forwarded-For names the client"""


class Route(BaseModel):
    """Releases that get the requests of one target, by their names in Docker's DNS."""

    model_config = ConfigDict(frozen=True)

    stable: str
    canary: str | None = None
    percent: float = 0
    """share of the requests that the canary gets, from 0 to 100"""


class Routes(BaseModel):
    """Routes of all deployed targets."""

    model_config = ConfigDict(frozen=True)

    targets: Mapping[str, Route] = {}

    def with_route(self, target: str, route: Route) -> "Routes":
        """Return a copy in which the route of `target` is replaced."""
        return Routes(targets={**self.targets, target: route})

    @property
    def default(self) -> str | None:
        """Target of paths that name no target: the first deployed target of `TARGETS`, else the first of the user's."""
        return next((target for target in (*TARGETS, *self.targets) if target in self.targets), None)


def render(routes: Routes, config: ServingConfig, gateway: GatewayConfig) -> str:
    """Write the routes as nginx configuration. `Gateway.routes` parses the first line."""
    # It takes 50 ms to import, and most commands only read the routes.
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), trim_blocks=True, autoescape=False)  # noqa: S701 - no HTML
    template = environment.get_template(TEMPLATE.name)
    return template.render(routes=routes, serving=config, gateway=gateway, spare_seconds=SPARE_SECONDS) + "\n"


@dataclass(frozen=True)
class Gateway:
    """The gateway's container."""

    container: str
    _seen: list[float] = field(default_factory=lambda: [time.time()])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the gateway, so that one command deploys at a time.

        A process in the gateway's container holds the lock, and ends with this process. The lock therefore also covers
        commands from other folders and other users.

        Raises:
            UserError: another command holds the lock, or the container does not run.

        """
        script = f"exec flock --nonblock --conflict-exit-code {HELD} {LOCK} sh -c 'echo held && exec cat >&2'"
        command = ["docker", "exec", "--interactive", self.container, "sh", "-c", script]
        # A new session keeps Ctrl-C from the holder: the command needs the lock while it cleans up.
        with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            try:
                if holder.stdout.readline() != b"held\n":
                    raise _not_held(holder)
                yield
            finally:
                holder.stdin.close()

    def routes(self) -> Routes:
        """Read the active routes."""
        found = self._run(f"head -n 1 {ACTIVE} 2>/dev/null || true")
        return Routes.model_validate_json(found.removeprefix("# ")) if found else Routes()

    def change(self, routes: Routes, serving: ServingConfig, config: GatewayConfig) -> None:
        """Activate routes, and return when no request uses the old routes any more. No request is lost.

        Raises:
            UserError: nginx refuses the new routes. The old routes stay.

        """
        self._write(NEXT, render(routes, serving, config))
        self._run(f"sed 's|{ACTIVE}.|{NEXT}|' {CONFIGURATION} > {TRIAL} && nginx -t -q -c {TRIAL}")
        try:
            self._run(CLOSE)
            docker("exec", "--user=0", self.container, "mv", NEXT, ACTIVE)
            self._run(RELOAD)
        finally:
            self._run(f"rm -f {CLOSING}")

    def is_half_changed(self) -> bool:
        """Whether a command was killed while it changed the routes."""
        return bool(self._run(f"ls {CLOSING} 2>/dev/null || true"))

    def reaches(self, name: str) -> bool:
        """Whether a release answers `/readyz` to the gateway."""
        url = f"http://{name}:3000/readyz"
        return self._run(f"curl -fs -m 10 -o /dev/null {url} && echo yes || true") == "yes"

    def answered(self) -> list[Answered]:
        """Return the requests that the gateway passed on since the last call."""
        since, found = self._seen[0], []
        for line in docker("logs", "--since", f"{since:.3f}", self.container).splitlines():
            try:
                record = json.loads(line)
                if record["when"] > since and _is_of_release(record):
                    found.append(Answered(record["release"], int(record["status"]), _seconds(record)))
                self._seen[0] = max(self._seen[0], record["when"])
            except (ValueError, KeyError, TypeError):
                continue  # not a request
        return found

    def _write(self, path: str, text: str) -> None:
        # The folder belongs to root: an attacker inside nginx cannot change the routes.
        docker("exec", "--interactive", "--user=0", self.container, "sh", "-c", f"cat > {path}", text=text)

    def _run(self, script: str) -> str:
        return docker("exec", self.container, "sh", "-c", script, timeout=CHANGE_SECONDS)


def _not_held(holder: subprocess.Popen[bytes]) -> UserError:
    _, errors = holder.communicate()
    if holder.returncode == HELD:
        return UserError("another command deploys or rolls back: wait until it ends", exit_code=1)
    return explain("exec", errors.decode(errors="replace"))


def _is_of_release(record: Mapping[str, Any]) -> bool:
    """Whether a request says something about a release. The gateway's own refusals do not."""
    return bool(record["release"] and (record["upstream"] or int(record["status"]) >= 500))


def _seconds(record: Mapping[str, Any]) -> float:
    """Return the latency that the classifier reports, else nginx's figure, which includes a slow client's upload."""
    if own := record["own_milliseconds"]:
        return float(own) / 1000
    # nginx lists one time for each attempt, or `-` for an attempt without a connection.
    return float(re.split("[,:] *", record["upstream_seconds"])[-1].strip("-") or 0)
