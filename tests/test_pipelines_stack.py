import os
import re
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from typer.testing import CliRunner

from core.errors import UserError
from pipelines.commands.main import app
from pipelines.commands.worker import wait_until_it_answers
from pipelines.prefect_server import HOST, free_port
from serving.endpoint.auth import read_tokens

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


def test_a_stack_has_the_name_of_its_folder(tmp_path):
    for folder, name in (("Birds of 2026", "birdsof2026"), ("convoy", "convoy"), ("_", "convoy")):
        (tmp_path / folder).mkdir()
        make_env(tmp_path / folder)
        assert read_env(tmp_path / folder)["COMPOSE_PROJECT_NAME"] == name


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
    assert STACK["networks"]["database"]["internal"]
    assert STACK["services"]["postgres"]["networks"] == ["database"]
    assert {name for name, one in STACK["services"].items() if "database" in one["networks"]} == {
        *("postgres", "mlflow", "prefect")
    }
    assert "ports" not in STACK["services"]["postgres"]


def test_an_image_of_others_has_a_version():
    images = [service["image"] for service in STACK["services"].values() if "image" in service]
    pinned = [
        re.fullmatch(r"\$\{[A-Z]+_IMAGE:-([\w/-]+):(v?\d[\w.-]*)\}", one) for one in images if "CONVOY" not in one
    ]
    assert len(pinned) == 3
    assert all(pinned)


def test_no_container_gets_the_engine():
    assert "docker.sock" not in TEXT
    assert "containerd.sock" not in TEXT


def test_no_secret_is_in_the_environment_of_a_container():
    for service in STACK["services"].values():
        for name, value in service.get("environment", {}).items():
            is_path = name.endswith(("_FILE", "_PATH"))
            assert is_path or not SECRET.search(f"{name} {value}"), name
            assert not is_path or re.match(r"(\$\{\w+-)?/(run/secrets|etc)/", value), name


def test_what_compose_demands_is_made_by_make_env(tmp_path):
    make_env(tmp_path)
    demanded = set(re.findall(r"\$\{(\w+):\?", TEXT))
    assert demanded == {"CONVOY_SECRETS"}
    assert read_env(tmp_path)["CONVOY_SECRETS"] == ".secrets"
    files = [value["file"].partition("}/")[2] for name, value in STACK["secrets"].items() if name != "index"]
    assert {*files, "token", "tokens"} == secrets_in(tmp_path).keys()
    used = {name for service in STACK["services"].values() for name in service.get("secrets", [])}
    assert used == STACK["secrets"].keys() - {"index"}


def secrets_in(folder):
    return {path.name: path.read_text().strip() for path in (folder / ".secrets").rglob("*") if path.is_file()}


def test_secrets_are_made_once_and_for_nobody_else(tmp_path):
    (tmp_path / "other").mkdir()
    make_env(tmp_path / "other")
    make_env(tmp_path)
    made, others = secrets_in(tmp_path), secrets_in(tmp_path / "other")
    assert (tmp_path / ".secrets").stat().st_mode & 0o777 == 0o700
    # The users of the containers read them; those of this machine do not get into the folder.
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / ".secrets").rglob("*") if path.is_file()} == {0o644}
    assert len(made) >= 9
    assert all(len(made[name]) >= 64 and made[name] != others[name] for name in made)
    assert made["prefect_auth"] == f"convoy:{made['prefect_password']}"
    assert not any(secret in (tmp_path / ".env").read_text() for secret in made.values())
    assert "stays" in make_env(tmp_path)
    assert secrets_in(tmp_path) == made


def test_the_token_that_is_made_opens_an_endpoint(tmp_path):
    make_env(tmp_path)
    file = tmp_path / ".secrets/classifiers/tokens"
    assert read_tokens({"CONVOY_TOKENS_FILE": str(file)}).find(f"Bearer {secrets_in(tmp_path)['token']}".encode())


OLD = """# Made by an older version.
CONVOY_BIND=0.0.0.0
POSTGRES_PASSWORD=old-postgres
MLFLOW_TRACKING_USERNAME=admin
MLFLOW_TRACKING_PASSWORD=old-admin
MLFLOW_AUTH_ADMIN_PASSWORD=old-admin
MLFLOW_FLASK_SERVER_SECRET_KEY='old key'
PREFECT_SERVER_API_AUTH_STRING=alice:old-prefect
PREFECT_PASSWORD=old-prefect
CONVOY_TOKEN=old-token
CONVOY_TOKENS=hash-one,hash-two
CONVOY_CPU_IMAGE=convoy/classifier:1-cpu-1f0c9a7e
"""


def test_the_secrets_of_an_older_version_move_into_the_folder(tmp_path):
    (tmp_path / ".env").write_text(OLD)
    assert "its secrets are in" in make_env(tmp_path)
    kept = read_env(tmp_path)
    assert kept == {
        "CONVOY_BIND": "0.0.0.0",
        "CONVOY_CPU_IMAGE": "convoy/classifier:1-cpu-1f0c9a7e",
        "CONVOY_SECRETS": ".secrets",
    }
    made = secrets_in(tmp_path)
    assert made.pop("tokens") == "hash-one\nhash-two"
    assert {name: value for name, value in made.items() if "old" in value} == {
        "postgres_password": "old-postgres",
        "mlflow_admin_password": "old-admin",
        "mlflow_session_key": "old key",
        "prefect_auth": "alice:old-prefect",
        "prefect_password": "old-prefect",
        "token": "old-token",
    }
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


def test_an_endpoint_that_was_open_stays_so(tmp_path):
    (tmp_path / ".env").write_text("CONVOY_TOKENS=\nCONVOY_ALLOW_ANONYMOUS=true\n")
    make_env(tmp_path)
    assert read_env(tmp_path)["CONVOY_STACK_TOKENS_FILE"] == ""


def test_a_command_gets_its_secrets_from_files(tmp_path):
    script = (ROOT / "serving/stack/secrets").read_text().replace("/run/secrets", str(tmp_path))
    (tmp_path / "one").write_text("it's $HOME `one`\n")
    names = {"A_PASSWORD_FILE": str(tmp_path / "one"), "SSL_CERT_FILE": "/etc/ssl/cert.pem"}
    command = ["sh", "-c", script, "secrets", "sh", "-c", 'echo "$A_PASSWORD;$SSL_CERT_FILE;${SSL_CERT-}"']
    said = subprocess.check_output(command, env=os.environ | names, text=True)
    assert said == "it's $HOME `one`;/etc/ssl/cert.pem;\n"


def test_no_secret_and_no_data_goes_into_an_image():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".env", ".secrets", ".venv", "outputs", "data/raw", "data/prepared"} <= set(ignored)


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
