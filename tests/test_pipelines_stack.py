import os
import re
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from typer.testing import CliRunner

from data.errors import UserError
from pipelines.cli import app
from pipelines.server import HOST, free_port
from pipelines.worker import wait_until_it_answers
from serving.auth import read_tokens

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docker-compose.yml").read_text()
STACK = yaml.safe_load(TEXT)
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH")

services = pytest.mark.parametrize("service", STACK["services"].values(), ids=STACK["services"])


def make_env(folder):
    script = ROOT / "serving/stack/env.sh"
    return subprocess.run(["sh", script, ".env"], cwd=folder, capture_output=True, text=True, check=True).stdout


def read_env(folder):
    lines = (folder / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@services
def test_a_service_is_watched_limited_and_started_again(service):
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"]
    assert service["cpus"]
    # The image of a model brings its own test.
    assert "healthcheck" in service or service["image"].startswith("${CONVOY_")
    assert service["logging"]["options"]["max-size"]


@services
def test_a_service_may_do_little(service):
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "network_mode" not in service


@services
def test_what_is_published_is_so_on_this_machine_only(service):
    for port in service.get("ports", []):
        assert re.match(r"\$\{CONVOY_BIND:-127\.0\.0\.1\}:\$\{\w+_PORT:-\d+\}:\d+$", port)


def test_the_database_is_reached_by_the_servers_only():
    assert STACK["networks"]["backend"]["internal"]
    assert STACK["services"]["postgres"]["networks"] == ["backend"]
    assert "ports" not in STACK["services"]["postgres"]


def test_no_container_gets_the_engine():
    assert "docker.sock" not in TEXT
    assert "containerd.sock" not in TEXT


def test_there_is_no_default_secret():
    for name, default in re.findall(r"\$\{(\w+)([^}]*)\}", TEXT):
        if SECRET.search(name) and name != "CONVOY_TOKENS":
            assert default.startswith(":?"), name
    for service in STACK["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD$|SECRET|AUTH_STRING$|^HEALTHY_AUTH$", name):
                assert "${" in value, name


def test_what_compose_demands_is_in_the_file_that_make_env_makes(tmp_path):
    make_env(tmp_path)
    demanded = set(re.findall(r"\$\{(\w+):\?", TEXT))
    assert len(demanded) >= 4
    assert demanded <= read_env(tmp_path).keys()
    assert STACK["secrets"]["prefect_password"]["environment"] in read_env(tmp_path)


def test_secrets_are_made_once_and_for_nobody_else(tmp_path):
    (tmp_path / "other").mkdir()
    make_env(tmp_path / "other")
    make_env(tmp_path)
    made, others = read_env(tmp_path), read_env(tmp_path / "other")
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    secrets = [name for name in made if SECRET.search(name) and name != "MLFLOW_TRACKING_USERNAME"]
    assert len(secrets) >= 7
    assert all(len(made[name]) >= 64 and made[name] != others[name] for name in secrets)
    assert "stays" in make_env(tmp_path)
    assert read_env(tmp_path) == made


def test_the_token_that_is_made_opens_an_endpoint(tmp_path):
    make_env(tmp_path)
    made = read_env(tmp_path)
    assert read_tokens({"CONVOY_TOKENS": made["CONVOY_TOKENS"]}).admits(f"Bearer {made['CONVOY_TOKEN']}")


def test_no_secret_and_no_data_goes_into_an_image():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".env", ".venv", "outputs", "data/raw", "data/prepared"} <= set(ignored)


def test_a_worker_says_which_server_it_needs(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    result = CliRunner().invoke(app, ["worker"])
    assert result.exit_code == 2
    assert "PREFECT_API_URL" in result.stderr
    assert "PREFECT_API_URL" not in os.environ


class Silent(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_server_is_waited_for():
    port = free_port()
    with pytest.raises(UserError, match=f"MLflow does not answer at http://{HOST}:{port}"):
        wait_until_it_answers("MLflow", f"http://{HOST}:{port}/health", seconds=0)
    with HTTPServer((HOST, port), Silent) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        wait_until_it_answers("MLflow", f"http://{HOST}:{port}/health", seconds=0)
        server.shutdown()
