"""`make pin` and `make audit`, with a registry and a database that answer, and without."""

import os
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipelines.prefect_server import HOST, free_port

ROOT = Path(__file__).parents[1]
COMPOSE = """
services:
  postgres: {image: "${POSTGRES_IMAGE:-postgres:17}"}
  gateway:
    image: ${NGINX_IMAGE:-nginx:1.28}
  cpu:
    image: ${CONVOY_CPU_IMAGE:-convoy/not-deployed}
"""
DOCKER = """#!/bin/sh
for image; do :; done
case $image in
(gone*) echo "dial tcp: no such host" >&2; exit 1 ;;
(*) echo "sha256:of-$image" ;;
esac
"""


@pytest.fixture
def pin(tmp_path):
    """Give a function that runs `make pin`'s script on settings; gives its exit status, its messages, the settings."""
    shutil.copy(ROOT / "serving/stack/pin.sh", tmp_path)
    (tmp_path / "docker-compose.yml").write_text(COMPOSE)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text(DOCKER)
    (tmp_path / "bin/docker").chmod(0o755)

    def pin(settings):
        path = tmp_path / ".env"
        if settings is not None:
            path.write_text(settings)
        environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        command = ["sh", "pin.sh", ".env"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr, path.read_text() if path.is_file() else None

    return pin


def test_digests_are_written_beside_the_tags(pin):
    pinned = "POSTGRES_IMAGE=postgres:17@sha256:of-postgres:17\n"
    status, _, settings = pin("A=1\nNGINX_IMAGE=mirror/nginx:1@sha256:old\nCONVOY_CPU_IMAGE=convoy/n:1\n")
    nginx = "NGINX_IMAGE=mirror/nginx:1@sha256:of-mirror/nginx:1\n"
    assert (status, settings) == (0, f"A=1\nCONVOY_CPU_IMAGE=convoy/n:1\n{nginx}{pinned}")
    assert pin(settings)[2] == settings


def test_without_a_registry_the_settings_stay(pin):
    status, message, settings = pin("NGINX_IMAGE=gone/nginx:1\n")
    assert (status, settings) == (1, "NGINX_IMAGE=gone/nginx:1\n")
    assert (
        message == "pin: NOT DONE: no registry answers for gone/nginx:1 (dial tcp: no such host); .env stays as it is\n"
    )
    assert pin(None)[2] == settings


def test_without_settings_it_says_what_to_do(pin):
    assert pin(None)[:2] == (2, "pin: there is no .env: say `make env` first\n")


class Database(BaseHTTPRequestHandler):
    """Answers every question."""

    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


def audit(url, **environment):
    command = [ROOT / ".ci/audit"]
    environment = os.environ | {"OSV_URL": url} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_an_audit_that_cannot_be_done_says_so_and_fails_nothing():
    status, said = audit(f"http://{HOST}:{free_port()}/query", PIP_AUDIT="false")
    assert status == 0
    assert said.startswith("audit: NOT DONE: ")
    assert said.endswith("Connection refused>); nothing was checked\n")


@pytest.mark.parametrize(("finds", "status"), [("true", 0), ("false", 1)])
def test_an_audit_ends_as_pip_audit_does(finds, status):
    with HTTPServer((HOST, free_port()), Database) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        found = audit(f"http://{HOST}:{server.server_port}/query", PIP_AUDIT=finds)
        server.shutdown()
    assert found[0] == status
    assert ("knows of no weakness" in found[1]) == (status == 0)
