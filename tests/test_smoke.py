"""A resolve that succeeds is not a set that works: each big part of the lock is imported and started once.

Imports stand inside the tests, because `make test` reads this file too and torch alone takes seconds.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PYTHON_M = [sys.executable, "-m"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fetch(url: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        text: str = response.read().decode()
        return text


@contextmanager
def serving(command: list[str], url: str, folder: Path) -> Iterator[None]:
    """Run a server in `folder` until the block ends; the block starts when `url` answers.

    The server is started in a process group of its own, so that its workers end with it.
    """
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for(url, server, log)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            fetch(url)
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{url} does not answer ({error}):\n{log.read_text()[-4000:]}")
            time.sleep(0.3)
        else:
            return


def test_prefect_server_becomes_healthy(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    port = free_port()
    command = [*PYTHON_M, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with serving(command, f"http://127.0.0.1:{port}/api/health", tmp_path):
        assert fetch(f"http://127.0.0.1:{port}/api/health") == "true"


FLOW = """
from prefect import flow, task
from prefect.testing.utilities import prefect_test_harness

@task
def double(number: int) -> int:
    return 2 * number

@flow
def doubled(number: int) -> int:
    return double(number)

with prefect_test_harness(server_startup_timeout=120):
    assert doubled(21) == 42
"""


def test_prefect_flow_runs(tmp_path):
    # Where Prefect has run a flow, each forked process fails as it ends: in a DataLoader of another test, too.
    script = tmp_path / "flow.py"
    script.write_text(FLOW)
    subprocess.run([sys.executable, script], check=True)


def test_mlflow_keeps_a_metric_that_its_server_shows(tmp_path):
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(store)
    experiment = client.create_experiment("smoke", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_metric(run_id, "val/accuracy", 0.625)
    assert client.get_run(run_id).data.metrics == {"val/accuracy": 0.625}

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [*PYTHON_M, "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    with serving(command, f"{address}/health", tmp_path):
        assert "<title>MLflow</title>" in fetch(address)
        seen = json.loads(fetch(f"{address}/api/2.0/mlflow/runs/get?run_id={run_id}"))
    assert seen["run"]["data"]["metrics"][0]["value"] == 0.625


def test_dvc_reproduces_a_stage_once(tmp_path):
    def said(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "word.txt").write_text("alexnet")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  shout:\n    cmd: tr a-z A-Z < word.txt > shout.txt\n    deps: [word.txt]\n    outs: [shout.txt]\n"
    )
    said("git", "init", "--quiet")
    said(*PYTHON_M, "dvc", "init", "--quiet")
    said(*PYTHON_M, "dvc", "repro")
    assert (tmp_path / "shout.txt").read_text() == "ALEXNET"
    assert "up to date" in said(*PYTHON_M, "dvc", "repro")


def test_bentoml_serves(tmp_path):
    (tmp_path / "service.py").write_text(
        "import bentoml\n\n\n"
        "@bentoml.service\nclass Doubler:\n"
        "    @bentoml.api\n    def double(self, number: int) -> int:\n        return 2 * number\n"
    )
    port = free_port()
    command = [*PYTHON_M, "bentoml", "serve", "service:Doubler", "--host", "127.0.0.1", "--port", str(port)]
    with serving(command, f"http://127.0.0.1:{port}/readyz", tmp_path):
        assert fetch(f"http://127.0.0.1:{port}/double", {"number": 21}) == "42"


def test_onnxruntime_reads_what_torch_exports(tmp_path):
    import numpy as np
    import onnxruntime
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    path = tmp_path / "network.onnx"
    # An example of one image would burn in a batch of one.
    example = (torch.zeros(2, 3, 8, 8),)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(network, example, path, input_names=["image"], dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 2, 7):
        images = torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(size))
        (seen,) = session.run(None, {"image": images.numpy()})
        np.testing.assert_allclose(seen, network(images).detach().numpy(), atol=1e-6)


def test_lightning_runs_one_batch(tmp_path):
    import pytorch_lightning as lightning
    import torch

    class Line(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return self.layer(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    line = Line()
    before = line.layer.weight.detach().clone()
    trainer = lightning.Trainer(fast_dev_run=True, accelerator="cpu", default_root_dir=tmp_path, logger=False)
    trainer.fit(line, torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=4))
    assert not torch.equal(before, line.layer.weight)
