import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from test_serving_classifier import BLUE, OCTETS, make_model, picture

from core.errors import UserError
from pipelines.prefect_server import free_port
from serving.config import ServingConfig
from serving.packaging import local_endpoint as endpoint_module
from serving.packaging.bento import Bento, build_bento
from serving.packaging.image import DOCKERFILE
from serving.packaging.local_endpoint import MALLOC, Endpoint, serve

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Bento:
    config = ServingConfig(top_k=2, max_body_mb=1)
    return build_bento(make_model(tmp_path_factory.mktemp("model")), config, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def endpoint(bento: Bento) -> Iterator[Endpoint]:
    with Endpoint(bento) as endpoint:
        yield endpoint


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=endpoint.url, timeout=30) as client:
        yield client


def processes_of(bento: Bento) -> list[int]:
    """Those that serve this Bento run in its folder; only they do."""
    found = psutil.process_iter(["cwd"])
    return [process.pid for process in found if process.info["cwd"] == str(bento.path / "src")]


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Without those that are dead and only wait for their parent to take notice."""
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_it_classifies(endpoint):
    answer = endpoint.classify(BLUE)
    assert [prediction["label"] for prediction in answer["predictions"]] == ["blue", "green"]
    assert answer["model"]["version"] == "3"


def test_it_says_why_it_refuses_an_image(endpoint):
    with pytest.raises(UserError, match="refused the image: not an image"):
        endpoint.classify(b"junk")
    with pytest.raises(UserError, match="larger than 1,000,000 bytes"):
        endpoint.classify(b"x" * 5_000_000)


def test_it_takes_bodies_and_forms(client):
    body = client.post("/classify?top_k=1", content=picture((250, 0, 0)), headers=OCTETS)
    form = client.post("/classify?top_k=1", files={"image": picture((250, 0, 0))})
    assert body.json() == form.json()
    assert body.json()["predictions"][0]["label"] == "red"
    # No spans, no access log, nothing else of BentoML's in the way.
    assert not [name for name in body.headers if "bentoml" in name]


def test_its_probes_and_metrics_answer(client):
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200
    assert client.get("/model").json()["run_id"] == "run-1"
    for number in range(50):
        assert client.get(f"/{number}").status_code == 404
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert 'route="other",status="404",version="3"} 50.0' in metrics.text
    assert 'route="/49"' not in metrics.text


@pytest.mark.parametrize(
    ("method", "path", "request_", "status"),
    [
        ("POST", "/classify", {"content": b"junk", "headers": OCTETS}, 400),
        ("POST", "/classify", {"content": picture((0, 0, 0), side=101), "headers": OCTETS}, 413),
        ("POST", "/classify", {"content": b"x" * 5_000_000, "headers": OCTETS}, 413),
        ("POST", "/classify", {"content": iter([b"x" * 500_000] * 10), "headers": OCTETS}, 413),
        ("POST", "/classify", {"files": {"image": b"x" * 5_000_000}}, 413),
        ("POST", "/classify", {"content": BLUE, "headers": {"content-type": "text/plain"}}, 415),
        ("POST", "/classify", {"files": {"other": BLUE}}, 422),
        ("GET", "/classify", {}, 405),
        ("GET", "/nothing", {}, 404),
        ("GET", "/docs.json", {}, 404),
        ("GET", "/healthz", {}, 404),
    ],
)
def test_it_refuses_bad_requests_in_json(client, method, path, request_, status):
    response = client.request(method, path, **request_)
    assert response.status_code == status
    assert response.json().keys() == {"error", "detail"}


def test_it_answers_after_broken_connections(endpoint, client):
    port = httpx.URL(endpoint.url).port
    for sent in (
        b"",
        b"\0\xff\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nx",
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
    assert client.get("/readyz").status_code == 200


def test_a_port_in_use_is_refused_before_anything_starts(bento, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("something was started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^port {port} is in use: choose another with --port, or stop"):
            Endpoint(bento, port=port)


def test_what_cannot_be_served_is_refused(bento):
    with pytest.raises(UserError, match=r"cannot listen on nowhere\.invalid"):
        Endpoint(bento, host="nowhere.invalid")
    with pytest.raises(UserError, match="holds no Bento"):
        Endpoint(bento.model_copy(update={"path": bento.path / "nowhere"}))


def test_it_is_not_served_to_other_machines_without_a_token(bento, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("something was started"))
    with pytest.raises(UserError, match=r"^other machines can reach 0\.0\.0\.0, and no token is asked for"):
        serve(bento, ServingConfig(host="0.0.0.0", port=0))
    monkeypatch.setenv("CONVOY_TOKENS", "not a hash")
    with pytest.raises(UserError, match=r"^CONVOY_TOKENS: expected the SHA-256"):
        serve(bento, ServingConfig(port=0))


@pytest.mark.slow
def test_only_a_public_endpoint_asks_for_tokens(bento, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens").write_text("0" * 64)
    monkeypatch.setenv("CONVOY_TOKENS_FILE", "tokens")
    with Endpoint(bento) as private:
        assert private.classify(BLUE)["predictions"]
    with Endpoint(bento, is_public=True) as public, pytest.raises(UserError, match="send one of this endpoint's tok"):
        public.classify(BLUE)


def test_a_service_that_does_not_start_is_told_with_its_log(bento, tmp_path):
    broken = bento.model_copy(update={"path": tmp_path / "broken"})
    shutil.copytree(bento.path, broken.path)
    (broken.path / "src/serving/endpoint/app.py").write_text("raise RuntimeError('this is broken')")
    with (
        pytest.raises(UserError, match=r"ended with status 1 before it was ready(.|\n)*this is broken"),
        Endpoint(broken),
    ):
        pytest.fail("it was ready")
    assert not processes_of(broken)


def test_a_model_that_fails_its_test_is_never_ready(bento, tmp_path):
    altered = bento.model_copy(update={"path": tmp_path / "altered"})
    shutil.copytree(bento.path, altered.path)
    manifest = altered.path / "src/model/manifest.json"
    manifest.write_text(manifest.read_text().replace('"probabilities":[0.9', '"probabilities":[0.5'))
    with pytest.raises(UserError, match=r"refuses its model:\n.*otherwise than measured"), Endpoint(altered):
        pytest.fail("it was ready")
    assert not processes_of(altered)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGINT, signal.SIGHUP))],
)
def test_serving_ends_with_a_signal_and_leaves_no_process(bento, tmp_path, number):
    program = f"""
import sys
from pathlib import Path
from serving.config import ServingConfig
from serving.packaging.local_endpoint import serve
from serving.packaging.bento import list_bentos
sys.exit(serve(list_bentos(Path({str(bento.path.parents[2])!r}))[0], ServingConfig(port=0)))
"""
    command = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if "TELEMETRY" not in key} | {"TMPDIR": str(tmp_path)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert command.stdout is not None
    line = command.stdout.readline()
    url = line.split()[-3]
    assert line == f"serving Strongest Color v3 on {url}  (Ctrl-C stops)\n"
    assert command.stdout.readline() == f"  curl -F image=@some.png {url}/classify\n"
    assert httpx.get(f"{url}/readyz").status_code == 200
    serving = psutil.Process(command.pid).children(recursive=True)
    assert len(serving) == 1
    command.send_signal(number)
    rest, errors = command.communicate(timeout=30)
    assert (command.returncode, rest, errors) == (0, "", "")
    assert not alive(serving)
    # Nothing stays behind, not even the device id that onnxruntime writes when it reports to its makers.
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_endpoint_that_does_not_stop_is_killed(bento, monkeypatch):
    monkeypatch.setattr(endpoint_module, "STOP_SECONDS", 1)
    with Endpoint(bento) as endpoint:
        endpoint._process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert endpoint._process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_bentoml_serves_it_too(bento, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", str(bento.path), "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"BENTOML_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    supervisor = subprocess.Popen(
        command, cwd=bento.path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        transport = httpx.HTTPTransport(retries=10)  # half a second, a second, two, ... until somebody listens
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, transport=transport) as client:
            assert client.get("/readyz").status_code == 200
            answer = client.post("/classify", content=BLUE, headers=OCTETS).json()
        assert answer["predictions"][0]["label"] == "blue"
    finally:
        family = [psutil.Process(supervisor.pid), *psutil.Process(supervisor.pid).children(recursive=True)]
        supervisor.terminate()
        _, left = psutil.wait_procs(family, timeout=20)
        for process in left:
            process.kill()
        supervisor.wait()


def test_an_endpoint_takes_its_memory_as_in_its_container(bento):
    with Endpoint(bento) as endpoint:
        environment = psutil.Process(endpoint._process.pid).environ()
    # The C library cuts the value where it has read it, at its first colon.
    assert all(value.partition(":")[0] == environment[name].partition(":")[0] for name, value in MALLOC.items())
    assert all(f" {name}={value} " in DOCKERFILE.read_text() for name, value in MALLOC.items())
