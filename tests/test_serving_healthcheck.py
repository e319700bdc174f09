"""The health check of an image, and what a deployment reads in its output."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipelines.prefect_server import HOST, free_port
from serving.endpoint import healthcheck
from serving.endpoint.middleware import NotReadyError, explain
from serving.rollout.containers import Container

REFUSAL = json.dumps(explain(NotReadyError()).problem)


@pytest.fixture
def listen(monkeypatch):
    """Give a function that answers one request on the address that is checked."""
    monkeypatch.setattr(healthcheck, "ADDRESS", (HOST, free_port()))
    servers = []

    def listen(status, body=""):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status if self.path == "/readyz" else 404)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        servers.append(HTTPServer(healthcheck.ADDRESS, Handler))
        servers[-1].handle_request()

    yield listen
    for server in servers:
        server.server_close()


def start(listen, *answer, delay=0.0):
    def run():
        time.sleep(delay)
        listen(*answer)

    threading.Thread(target=run, daemon=True).start()


def test_it_waits_until_the_endpoint_listens(listen):
    start(listen, 200, delay=0.3)
    healthcheck.main()


def test_it_prints_what_the_endpoint_answers(listen):
    start(listen, 503, REFUSAL)
    with pytest.raises(SystemExit, match="no model is ready"):
        healthcheck.main()


def test_nobody_who_listens_is_a_failure(listen, monkeypatch):
    monkeypatch.setattr(healthcheck, "START_SECONDS", 0)
    with pytest.raises(ConnectionRefusedError):
        healthcheck.main()


@pytest.mark.parametrize(
    ("health", "refuses"),
    [
        ({"Status": "starting", "Log": [{"Output": "Connection refused"}, {"Output": f"{REFUSAL}\n"}]}, True),
        ({"Status": "starting", "Log": [{"Output": REFUSAL}, {"Output": '{"error": "overloaded"}'}]}, False),
        ({"Status": "healthy", "Log": [{"Output": ""}]}, False),
        ({"Status": "starting", "Log": [{"Output": "[]"}]}, False),
        ({"Status": "starting", "Log": []}, False),
        ({"Status": "starting", "Log": None}, False),
    ],
)
def test_a_deployment_reads_that_a_model_cannot_be_served(health, refuses):
    inspected = {
        "Id": "1",
        "Name": "/cpu-1",
        "Image": "sha256:1",
        "RestartCount": 0,
        "Config": {"Image": "convoy/m:1", "Labels": None},
        "State": {"Status": "running", "Health": health},
    }
    assert Container.read(inspected).refuses_model is refuses
