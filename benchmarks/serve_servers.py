"""Servers for comparisons, each in its own processes, whose CPU time and memory are measured."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.serve_load import Call, answers
from pipelines.prefect_server import free_port
from serving.config import ServingConfig
from serving.packaging.bento import build_bento
from serving.packaging.local_endpoint import MALLOC
from serving.packaging.tuning import PACKING_FILE

ROOT = Path(__file__).parents[1]
READY_SECONDS = 120
RAW = {"Content-Type": "application/octet-stream"}
BOUNDARY = "convoy-benchmark"


@dataclass(frozen=True)
class Server:
    """How to start a server, and how to send requests to it."""

    name: str
    command: Callable[[int], Sequence[str]]
    """command for a port"""
    ready: str
    """path whose GET has status 200 when the server can classify"""
    path: str
    encode: Callable[[bytes], bytes]
    """converts the bytes of an image to a request body"""
    headers: Mapping[str, str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Running:
    """Running server."""

    server: Server
    port: int
    process: psutil.Process
    start_seconds: float
    """time from the start to the first answer"""

    def call(self, images: Sequence[bytes]) -> Call:
        """Return the requests for these images."""
        bodies = [self.server.encode(image) for image in images]
        return Call(self.port, self.server.path, bodies, self.server.headers)

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes of the server."""
        times = [process.cpu_times() for process in self.family()]
        return sum(used.user + used.system for used in times)

    def memory_bytes(self) -> int:
        """Return the memory of all processes of the server. Shared memory is counted once."""
        return sum(process.memory_full_info().pss for process in self.family())

    def family(self) -> list[psutil.Process]:
        """Return all processes of the server, main process first."""
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def running(server: Server, log: Path) -> Iterator[Running]:
    """Start a server, wait until it answers, and end all its processes after the block.

    Raises:
        RuntimeError: the server does not start.

    """
    port = free_port()
    with log.open("wb") as output:
        start = time.perf_counter()
        # A new session, so that all processes of the server can be found and ended.
        process = subprocess.Popen(
            server.command(port),
            env={**os.environ, **server.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        family: list[psutil.Process] = []
        try:
            while not answers(port, server.ready):
                if process.poll() is not None or time.perf_counter() - start > READY_SECONDS:
                    raise RuntimeError(f"{server.name} does not start: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.01)
            running_server = Running(server, port, psutil.Process(process.pid), time.perf_counter() - start)
            yield running_server
        finally:
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            for left in [process, *family]:
                with suppress(psutil.NoSuchProcess):
                    left.kill()
            process.wait()


def peers(model: Path, scratch: Path) -> list[Server]:
    """Return Convoy's peers, which serve the exported model in folder `model`. The first peer is the lower bound."""
    module = [sys.executable, "-m"]

    def script(name: str) -> Callable[[int], list[str]]:
        return lambda port: [*module, f"benchmarks.peers.{name}_peer", str(model), str(port)]

    quiet = {
        "BENTOML_DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
    }
    # MLflow starts programs from PATH.
    quiet["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    bento = {"BENTOML_HOME": str(scratch / "peer-bentoml"), "PEER_MODEL": str(model)}
    form = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return [
        Server("Starlette + onnxruntime", script("starlette"), "/ready", "/classify", bytes, RAW, quiet),
        Server("FastAPI", script("fastapi"), "/openapi.json", "/classify", as_form, form, quiet),
        Server("LitServe", script("litserve"), "/health", "/classify", as_form, form, quiet),
        Server(
            "BentoML",
            lambda port: [*module, "bentoml", "serve", "benchmarks.peers.bentoml_peer:StockService", "--quiet",
                          "--host", "127.0.0.1", "--port", str(port)],
            "/readyz", "/classify", as_form, form, quiet | bento,
        ),
        Server(
            "MLflow",
            lambda port: [*module, "mlflow", "models", "serve", "--model-uri", str(_log_pyfunc(model, scratch)),
                          "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)],
            "/health", "/invocations", as_rows, {"Content-Type": "application/json"}, quiet,
        ),
    ]  # fmt: skip


def convoy(model: Path, scratch: Path, target: Literal["cpu", "gpu", "edge"]) -> list[Server]:
    """Return Convoy's endpoint of a model. If packaging chose batches, also return an endpoint without batches."""
    bento = build_bento(model, ServingConfig(target=target), scratch / "bentos")
    packing = json.loads((bento.path / "src" / PACKING_FILE).read_text())
    folders = {"Convoy": bento.path}
    if packing["max_batch"] > 1:
        folders["Convoy, one by one"] = single = scratch / "single"
        shutil.copytree(bento.path, single)
        (single / "src" / PACKING_FILE).write_text(json.dumps(packing | {"max_batch": 1}))
    return [
        # Without -P, Python would import from this folder before the Bento's.
        Server(
            name,
            lambda port: [sys.executable, "-P", "-m", "serving.endpoint.server", "--port", str(port)],
            "/readyz", "/classify", bytes, RAW,
            {**MALLOC, "BENTOML_HOME": str(scratch), "PYTHONPATH": str(path / "src")},
        )
        for name, path in folders.items()
    ]  # fmt: skip


def as_form(image: bytes) -> bytes:
    """Put an image into the field `image` of a form."""
    disposition = 'Content-Disposition: form-data; name="image"; filename="photo.jpg"'
    head = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n"
    return head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def as_rows(image: bytes) -> bytes:
    """Put an image into a table with one row, for MLflow's server."""
    return json.dumps({"dataframe_records": [{"image": base64.b64encode(image).decode()}]}).encode()


def _log_pyfunc(model: Path, scratch: Path) -> Path:
    """Write a model in MLflow's format, once, and return its folder."""
    folder = scratch / "pyfunc"
    if not folder.exists():
        import mlflow

        code = Path(__file__).parent / "peers" / "mlflow_peer.py"
        mlflow.pyfunc.save_model(
            folder, python_model=str(code), artifacts={"model": str(model)}, pip_requirements=["mlflow"]
        )
    return folder
