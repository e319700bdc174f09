"""The servers that are compared: each in processes of its own, whose time and memory are counted."""

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
    """How a server is started, and how it is asked."""

    name: str
    command: Callable[[int], Sequence[str]]
    """for a port"""
    ready: str
    """path that answers 200 to GET when it can classify, or that it cannot be asked before"""
    path: str
    encode: Callable[[bytes], bytes]
    """from the bytes of an image to a body"""
    headers: Mapping[str, str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    server: Server
    port: int
    process: psutil.Process
    start_seconds: float
    """from its start to its first answer"""

    def call(self, images: Sequence[bytes]) -> Call:
        """Make the request that it is asked with."""
        bodies = [self.server.encode(image) for image in images]
        return Call(self.port, self.server.path, bodies, self.server.headers)

    def cpu_seconds(self) -> float:
        """Processor time that all its processes have used."""
        times = [process.cpu_times() for process in self.family()]
        return sum(used.user + used.system for used in times)

    def memory_bytes(self) -> int:
        """What its processes hold; what they share is counted once."""
        return sum(process.memory_full_info().pss for process in self.family())

    def family(self) -> list[psutil.Process]:
        """All its processes, the first one first."""
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def running(server: Server, log: Path) -> Iterator[Running]:
    """Start a server, wait until it answers, and end all its processes after the block.

    Raises:
        RuntimeError: it does not start.

    """
    port = free_port()
    with log.open("wb") as output:
        start = time.perf_counter()
        # A session of its own: all that it starts can be found and ended.
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
    """All that serve the exported model in the folder `model` beside Convoy; the first is the floor."""
    module = [sys.executable, "-m"]

    def script(name: str) -> Callable[[int], list[str]]:
        return lambda port: [*module, f"benchmarks.peers.{name}_peer", str(model), str(port)]

    quiet = {
        "BENTOML_DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
    }
    # MLflow starts what is on the path.
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
    """Convoy's own endpoint of a model; where it makes batches, as measured when it was packed, also without them."""
    bento = build_bento(model, ServingConfig(target=target), scratch / "bentos")
    packing = json.loads((bento.path / "src" / PACKING_FILE).read_text())
    folders = {"Convoy": bento.path}
    if packing["max_batch"] > 1:
        folders["Convoy, one by one"] = single = scratch / "single"
        shutil.copytree(bento.path, single)
        (single / "src" / PACKING_FILE).write_text(json.dumps(packing | {"max_batch": 1}))
    return [
        # Without -P, this folder would be looked in before the Bento's.
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
    """Put an image into the one row of a table, as MLflow's servers take it."""
    return json.dumps({"dataframe_records": [{"image": base64.b64encode(image).decode()}]}).encode()


def _log_pyfunc(model: Path, scratch: Path) -> Path:
    """Write a model in MLflow's own form, once; returns its folder."""
    folder = scratch / "pyfunc"
    if not folder.exists():
        import mlflow

        code = Path(__file__).parent / "peers" / "mlflow_peer.py"
        mlflow.pyfunc.save_model(
            folder, python_model=str(code), artifacts={"model": str(model)}, pip_requirements=["mlflow"]
        )
    return folder
