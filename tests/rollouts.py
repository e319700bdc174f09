"""What the tests of deploying share: a compose project of their own, small images that behave on purpose, a load."""

import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

from pipelines.prefect_server import free_port
from serving.config import ServingConfig
from serving.rollout.canary import RolloutConfig
from serving.rollout.containers import Project, read_release
from serving.rollout.deploy import Site
from serving.rollout.gateway import GatewayConfig

ROOT = Path(__file__).parents[1]

STUB = """
import json, os, random, signal, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION, READY = os.environ["VERSION"], os.environ["READY"]
FAILS, SECONDS = float(os.environ["FAILS"]), float(os.environ["SECONDS"])
if READY == "never starts":
    sys.exit("the model is broken")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/model" and self.headers["authorization"] == "Bearer wrong":
            return self.answer(401)
        unready = self.path == "/readyz" and READY != "yes"
        self.answer(503 if unready else 200, "not_ready" if READY == "never" else "busy")

    def do_POST(self):
        if self.path == "/refuse":
            return self.answer(413)
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(3 if self.path == "/slow" else SECONDS)
        if self.path == "/die":
            os.kill(os.getpid(), signal.SIGKILL)
        self.answer(500 if random.random() < FAILS else 200)

    def answer(self, status, error=""):
        answer = {"error": error, "model": {"version": VERSION}, "path": self.path, "id": self.headers["x-request-id"]}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if status == 401:
            self.send_header("www-authenticate", "Bearer")
        self.send_header("server-timing", f"app;dur={SECONDS * 1000}")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = False


server = Server(("0.0.0.0", 3000), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
"""

DOCKERFILE = """
FROM python:3.11-slim-bookworm
COPY stub.py healthcheck.py /
USER 1034:1034
HEALTHCHECK --interval=1s --timeout=20s --start-period=3s --start-interval=300ms --retries=2 \
    CMD ["python", "-I", "-S", "/healthcheck.py"]
CMD ["python", "-u", "/stub.py"]
"""

QUICK = RolloutConfig(
    ready_seconds=30, canary_min_requests=100, canary_seconds=1, canary_max_seconds=30, canary_max_slowdown=3
)


# What stands for an image where no registry can be reached: the engine of such a machine has these.
STAND_INS = {"postgres": "postgres:17-bookworm", "nginx": "nginx:stable", "prometheus": "prom/prometheus:latest"}


def stand_in(name):
    """Give the image that docker-compose.yml pins for postgres, nginx or prometheus, where need be as a stand-in."""
    pinned = re.search(rf"\$\{{{name.upper()}_IMAGE:-(.+?)\}}", (ROOT / "docker-compose.yml").read_text())[1]
    here = subprocess.run(["docker", "image", "inspect", pinned], capture_output=True, check=False).returncode == 0
    if not here:
        # Fails where the stand-in is missing too: compose then pulls the pinned one, as a user's does.
        subprocess.run(["docker", "tag", STAND_INS[name], pinned], capture_output=True, check=False)
    return pinned


def site(folder, target="cpu", gateway=None, **rollout):
    config, ledger = QUICK.model_copy(update=rollout), folder / "outputs/ledger.jsonl"
    return Site(Project(folder), target, ledger, ServingConfig(max_body_mb=0.1), config, gateway or GatewayConfig())


def wait_for(is_so, seconds=20):
    give_up = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.05)


class Stack:
    """A folder as a clone is, whose containers are a project of their own; all is gone after the `with` block."""

    def __init__(self, folder, name="deploytest"):
        self.folder, self.name, self.port, self.images = folder, f"{name}{free_port()}", free_port(), set()
        shutil.copytree(ROOT / "serving/stack/gateway", folder / "serving/stack/gateway")
        shutil.copy(ROOT / "docker-compose.yml", folder)
        stand_in("nginx")
        # As `make env` makes it; what stands last counts.
        subprocess.run(["sh", ROOT / "serving/stack/env.sh", folder / ".env"], check=True, capture_output=True)
        with (folder / ".env").open("a") as file:
            # On the port of MLflow nobody answers: models are in the workspace.
            file.write(f"COMPOSE_PROJECT_NAME={self.name}\nGATEWAY_PORT={self.port}\nMLFLOW_PORT={free_port()}\n")
        self.token = (folder / ".secrets/token").read_text().strip()
        self.ledger = folder / "outputs" / "ledger.jsonl"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        everything = ["--profile=*", "down", "--volumes", "--timeout=1", "--remove-orphans"]
        subprocess.run(["docker", "compose", *everything], cwd=self.folder, check=True, capture_output=True)
        if self.images:
            subprocess.run(["docker", "rmi", "--force", *self.images], check=True, capture_output=True)

    def site(self, **options):
        return site(self.folder, **options)

    def build(self, version, ready="yes", fails=0.0, seconds=0.0, target="cpu"):
        """Build an image that calls itself `version`; gives its release."""
        folder = self.folder / "image"
        folder.mkdir(exist_ok=True)
        (folder / "stub.py").write_text(STUB)
        shutil.copy(ROOT / "serving/endpoint/healthcheck.py", folder)
        labels = {"target": target, "model_name": "stub", "model_version": version, "run_id": "r" * 32}
        values = {"VERSION": version, "READY": ready, "FAILS": fails, "SECONDS": seconds, "TARGET": target}
        lines = [f'ENV {key}="{value}"' for key, value in values.items()]
        lines += [f'LABEL convoy.{key}="{value}"' for key, value in labels.items()]
        (folder / "Dockerfile").write_text(DOCKERFILE + "\n".join(lines))
        tag = f"convoy/{self.name}:{version}-{target}"
        command = ["docker", "build", "--quiet", "--tag", tag, folder]
        built = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        # By its id as well: the next image of this version takes the tag away.
        self.images |= {tag, built}
        return read_release(tag, target)

    def containers(self, target="cpu"):
        return Project(self.folder).containers(target)

    def send(self, text, seconds=10):
        """Send bytes to the gateway; gives status and JSON of its answer, which may come before all of a body."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(text)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status, json.loads(response.read()), response.headers

    def ask(self, path="/classify", method="POST", body=b"image", headers=None):
        """Ask the gateway; gives status, what it answered and the headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body if method == "POST" else None, headers or {})
            response = connection.getresponse()
            text = response.read()
            answer = json.loads(text) if response.headers["Content-Type"] == "application/json" else None
            return response.status, answer, dict(response.getheaders())
        finally:
            connection.close()


class Load:
    """Clients that ask the gateway all the time, half of them on connections that they keep; who answered, what failed.

    Each request is tried once: one that a client would have to send again is a lost one.
    """

    def __init__(self, port, num_clients=8, pause=0.01, body=b"image" * 400, headers=None):
        self.port, self.pause, self.body, self.headers = port, pause, body, headers or {}
        self.answered, self.failed = Counter(), []
        self._stop = threading.Event()
        self._clients = [threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(num_clients)]

    def __enter__(self):
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for client in self._clients:
            client.join()

    def _ask(self, keeps_connection):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = self.headers | ({} if keeps_connection else {"Connection": "close"})
        while not self._stop.is_set():
            try:
                connection.request("POST", "/classify", self.body, headers)
                response = connection.getresponse()
                body = response.read()
                if response.status == 200:
                    self.answered[json.loads(body)["model"]["version"]] += 1
                else:
                    self.failed.append((time.time(), response.status, body))
            except (OSError, http.client.HTTPException) as error:
                self.failed.append((time.time(), repr(error)))
                connection.close()
            time.sleep(self.pause)
        connection.close()
