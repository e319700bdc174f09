"""The gateway's routes: which release of a target gets which share of the requests, and how that changes without loss.

nginx alone would lose some: its old workers, when they are told to end, close the connections that clients keep open,
on which the next request may be on its way. So before they end, every answer is made the last one of its connection.
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
from subprocess import PIPE
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from core.errors import UserError
from core.sections import Section
from serving.config import ServingConfig
from serving.rollout.canary import Answered
from serving.rollout.docker import docker, explain
from serving.targets import TARGETS

CONFIGURATION = "/etc/nginx/gateway/nginx.conf"
ACTIVE = "/etc/nginx/routes/active.conf"
NEXT = "/etc/nginx/routes/next"
STATE = "/tmp"  # noqa: S108 - of the gateway's container, in memory
CLOSING = f"{STATE}/closing"
TRIAL = f"{STATE}/trial.conf"
LOCK = f"{STATE}/lock"
HELD = 75
"""Exit status of `flock` where another command holds the lock."""
SPARE_SECONDS = 5
"""The gateway waits for a classifier that much longer than the classifier itself takes before it gives up."""
CHANGE_SECONDS = 120

# Clients' connections are kept open for 10 seconds at most: after that, none of them is idle.
CLOSE = f"""
touch {CLOSING}
for _ in $(seq 110); do
    curl -fs http://127.0.0.1:8081/connections | grep -q 'Waiting: 0' && break
    sleep 0.1
done
"""
# What changed is in use when the workers of before are gone, and they go when they have answered.
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
    """Accept an address, or a network with its prefix, of IPv4 or IPv6."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(f"expected an address or a network, such as 10.0.0.7 or 10.0.0.0/8, not {text}") from None


class GatewayConfig(Section):
    """What the gateway takes from one client; a change is in use after the next `convoy deploy`."""

    max_connections: int = Field(128, ge=1)
    """requests that one address may have in flight; beyond them the answer is 429"""
    max_requests_per_second: int = Field(1000, ge=1)
    """requests of one address in a second; beyond them the answer is 429"""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_check_network)], ...] = ()
    """addresses of proxies before the gateway, such as [10.0.0.7]: their X-Forwarded-For names the client"""


class Route(BaseModel):
    """Who gets the requests of one target, by the names that Docker's own name server knows."""

    model_config = ConfigDict(frozen=True)

    stable: str
    canary: str | None = None
    percent: float = 0
    """share of the requests that the canary gets"""


class Routes(BaseModel):
    """The routes of all targets that are deployed."""

    model_config = ConfigDict(frozen=True)

    targets: Mapping[str, Route] = {}

    def with_route(self, target: str, route: Route) -> "Routes":
        """Give these routes with one of them replaced."""
        return Routes(targets={**self.targets, target: route})

    @property
    def default(self) -> str | None:
        """The target that answers where a path names none: the first of the table that is deployed."""
        return next((target for target in TARGETS if target in self.targets), None)


def render(routes: Routes, config: ServingConfig, gateway: GatewayConfig) -> str:
    """Write the routes as nginx reads them; the first line is how we read them again."""
    limit = int(config.max_body_mb * 1_000_000)
    shares = [line for target, route in routes.targets.items() for line in _share(target, route)]
    locations = [line for target in routes.targets for line in _location(f"/{target}", target)]
    if routes.default:
        locations += _location("", routes.default)
    lines = [
        f"# {routes.model_dump_json()}",
        *shares,
        *_zones(gateway),
        "server {",
        "    listen 8080 default_server deferred backlog=1024;",
        *_limits(gateway),
        f"    client_max_body_size {limit};",
        f"    proxy_read_timeout {config.deadline_seconds + SPARE_SECONDS:g}s;",
        f'    set $limit "{config.max_body_mb:g} MB";',
        "    absolute_redirect off;",
        "    include /etc/nginx/gateway/server.conf;",
        *locations,
        "    location / {",
        f"        return {404 if routes.targets else 503};",
        "    }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _zones(gateway: GatewayConfig) -> Iterator[str]:
    yield "limit_conn_zone $binary_remote_addr zone=connections:4m;"
    yield f"limit_req_zone $binary_remote_addr zone=requests:4m rate={gateway.max_requests_per_second}r/s;"


def _limits(gateway: GatewayConfig) -> Iterator[str]:
    yield f"    limit_conn connections {gateway.max_connections};"
    yield f"    limit_req zone=requests burst={gateway.max_requests_per_second} nodelay;"
    for kind in ("conn", "req"):
        # A refusal has its line in the log of requests.
        yield f"    limit_{kind}_log_level info;"
        yield f"    limit_{kind}_status 429;"
    for network in gateway.trusted_proxies:
        yield f"    set_real_ip_from {network};"
    if gateway.trusted_proxies:
        yield "    real_ip_header X-Forwarded-For;"
        yield "    real_ip_recursive on;"


def _share(target: str, route: Route) -> Iterator[str]:
    yield f"split_clients $request_id $release_{target} {{"
    if route.canary:
        yield f"    {route.percent:.2f}% {route.canary};"
    yield f"    * {route.stable};"
    yield "}"


def _location(prefix: str, target: str) -> Iterator[str]:
    # Only what a path of a classifier can hold is passed on.
    yield f"    location ~ ^{prefix}(?<rest>/[\\w./-]*)$ {{"
    yield f"        set $target {target};"
    yield f"        set $release $release_{target};"
    yield "        set $path $rest;"
    yield "        include /etc/nginx/gateway/pass.conf;"
    yield "    }"
    if prefix:
        yield f"    location = {prefix} {{"
        yield f"        return 308 {prefix}/;"
        yield "    }"


@dataclass(frozen=True)
class Gateway:
    """The gateway's container."""

    container: str
    _seen: list[float] = field(default_factory=lambda: [time.time()])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the gateway: what two commands deploy at the same time would get in each other's way.

        Held by a process in the container that ends when ours does, however that ends; who deploys from another folder
        or as another user meets it as well.

        Raises:
            UserError: another command holds it, or the container does not run.

        """
        script = f"exec flock --nonblock --conflict-exit-code {HELD} {LOCK} sh -c 'echo held && exec cat >&2'"
        command = ["docker", "exec", "--interactive", self.container, "sh", "-c", script]
        # In a session of its own: Ctrl-C is for the command, which goes on holding the gateway while it tidies up.
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
        """Read the routes that are in use."""
        found = self._run(f"head -n 1 {ACTIVE} 2>/dev/null || true")
        return Routes.model_validate_json(found.removeprefix("# ")) if found else Routes()

    def change(self, routes: Routes, serving: ServingConfig, config: GatewayConfig) -> None:
        """Put routes to use; returns when nobody goes the old ones any more, and no request is lost on the way.

        Raises:
            UserError: nginx refuses them; the old ones stay.

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
        """Whether a release is ready as seen from here."""
        url = f"http://{name}:3000/readyz"
        return self._run(f"curl -fs -m 10 -o /dev/null {url} && echo yes || true") == "yes"

    def answered(self) -> list[Answered]:
        """Give the requests that were passed on since this was asked last."""
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
        # The folder is root's: who breaks into nginx moves no traffic.
        docker("exec", "--interactive", "--user=0", self.container, "sh", "-c", f"cat > {path}", text=text)

    def _run(self, script: str) -> str:
        return docker("exec", self.container, "sh", "-c", script, timeout=CHANGE_SECONDS)


def _not_held(holder: subprocess.Popen[bytes]) -> UserError:
    _, errors = holder.communicate()
    if holder.returncode == HELD:
        return UserError("another command deploys or rolls back: wait until it ends", exit_code=1)
    return explain("exec", errors.decode(errors="replace"))


def _is_of_release(record: Mapping[str, Any]) -> bool:
    """Whether a request was passed on, or should have been: refusals by the gateway itself say nothing of a release."""
    return bool(record["release"] and (record["upstream"] or int(record["status"]) >= 500))


def _seconds(record: Mapping[str, Any]) -> float:
    """Read how long the classifier took, by its own clock if it tells: the gateway's includes a client's slow body."""
    if own := record["own_milliseconds"]:
        return float(own) / 1000
    # Of several tries each has its time; where no connection came about, there is none.
    return float(re.split("[,:] *", record["upstream_seconds"])[-1].strip("-") or 0)
