from pathlib import Path

import pytest
import yaml

from core.errors import UserError
from serving.config import ServingConfig
from serving.rollout.gateway import Gateway, GatewayConfig, Route, Routes, render
from serving.targets import TARGETS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


ROUTES = Routes(targets={"edge": Route(stable="edge-1"), "cpu": Route(stable="cpu-1", canary="cpu-2", percent=12.5)})


def test_routes_are_read_again_from_what_is_written():
    first = render(ROUTES, ServingConfig(), GatewayConfig()).splitlines()[0]
    assert Routes.model_validate_json(first.removeprefix("# ")) == ROUTES


def test_what_nginx_is_told():
    text = render(ROUTES, ServingConfig(max_body_mb=2.5, deadline_seconds=7), GatewayConfig())
    assert "split_clients $request_id $release_cpu {\n    12.50% cpu-2;\n    * cpu-1;\n}" in text
    assert "client_max_body_size 2500000;" in text
    # longer than the classifier itself takes to give up
    assert "proxy_read_timeout 12s;" in text
    assert text.count("location ~ ^/cpu(?<rest>") == text.count("location ~ ^/edge(?<rest>") == 1
    # the first of the table answers where no target is named
    assert "location ~ ^(?<rest>/[\\w./-]*)$ {\n        set $target cpu;" in text


def test_what_one_address_gets():
    gateway = GatewayConfig(max_connections=7, max_requests_per_second=9, trusted_proxies=("10.0.0.0/8", "10.1.2.3"))
    text = render(ROUTES, ServingConfig(), gateway)
    assert "zone=requests:4m rate=9r/s;" in text
    assert "    limit_conn connections 7;" in text
    assert "    limit_req zone=requests burst=9 nodelay;" in text
    assert "    set_real_ip_from 10.0.0.0/8;\n    set_real_ip_from 10.1.2.3/32;\n" in text
    assert "real_ip" not in render(ROUTES, ServingConfig(), GatewayConfig())
    with pytest.raises(ValueError, match=r"such as 10\.0\.0\.7 or 10\.0\.0\.0/8, not 10\.0\.0\.1/8"):
        GatewayConfig(trusted_proxies=("10.0.0.1/8",))


# The image has this folder with a mode for everyone; of any other tmpfs, a restart forgets the mode.
def test_the_gateway_writes_only_where_a_restart_keeps_the_mode(services):
    assert [entry.partition(":")[0] for entry in services["gateway"]["tmpfs"]] == ["/tmp"]
    assert "mode=" not in str(services["gateway"]["tmpfs"])


def test_without_routes_nothing_is_passed_on():
    text = render(Routes(), ServingConfig(), GatewayConfig())
    assert "pass.conf" not in text
    assert "return 503;" in text


def test_a_route_replaces_that_of_its_target():
    routes = Routes().with_route("edge", Route(stable="a")).with_route("gpu", Route(stable="b"))
    assert routes.default == "gpu"
    assert routes.with_route("gpu", Route(stable="c")).targets == {"edge": Route(stable="a"), "gpu": Route(stable="c")}


@pytest.mark.parametrize("target", TARGETS)
def test_the_limits_of_the_containers_are_those_of_the_table(services, target):
    service = services[target]
    memory, cpus = (str(service[key]).rpartition(":-")[2].rstrip("}") for key in ("mem_limit", "cpus"))
    assert (memory, float(cpus)) == (f"{TARGETS[target].memory_mb}m", TARGETS[target].cpus)
    assert service["profiles"] == [target]


@pytest.mark.parametrize("name", ["gateway", *TARGETS])
def test_no_container_may_do_more_than_it_must(services, name):
    service = services[name]
    assert (service["read_only"], service["cap_drop"], service["restart"]) == (True, ["ALL"], "unless-stopped")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "docker.sock" not in str(service)
    # Only the gateway is reached from outside.
    assert ("ports" in service) == ("outside" in service["networks"]) == (name == "gateway")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 75", "another command deploys or rolls back"),
        ("echo 'Error: container is restarting' >&2; exit 1", "^docker exec failed: Error: container is restarting$"),
    ],
)
def test_who_cannot_hold_the_gateway_learns_why(tmp_path, monkeypatch, script, message):
    client = tmp_path / "docker"
    client.write_text(f"#!/bin/sh\n{script}\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=message), Gateway("gateway").lock():
        pass
