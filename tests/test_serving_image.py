"""The container of an endpoint, for real: how it is confined, what is in it, and what it does when things go wrong."""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image as Picture
from test_serving_classifier import BLUE, OCTETS, make_model, picture

from benchmarks.serve_container import OPEN, Container, container
from benchmarks.serve_load import answers
from core.errors import UserError
from models.exported.predictor import OnnxPredictor, read_model_manifest
from models.tracking.registry import write_manifest
from serving.config import ServingConfig
from serving.endpoint.auth import new_token
from serving.packaging.bento import Bento, build_bento
from serving.packaging.image import SBOM_FILE, SBOM_PATH, Image, build_image, find_image, image_tag, inspect_image
from serving.rollout.containers import Container as Classifier
from serving.rollout.containers import wait_until_ready
from serving.rollout.docker import docker
from serving.targets import TARGETS

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

EDGE = TARGETS["edge"]
MAX_MEGABYTES = {"edge": 180, "cpu": 230}
"""Of an image, over its base and its model."""


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Bento:
    return pack(tmp_path_factory.mktemp("edge"), "edge")


def pack(folder: Path, target: str) -> Bento:
    """A Bento of a name that no other test's image has."""
    model = make_model(folder / "model", max_pixels=50_000_000)
    write_manifest(model, read_model_manifest(model).model_copy(update={"name": "image tests"}))
    return build_bento(model, ServingConfig(target=target), folder / "store")


@pytest.fixture(scope="module")
def image(bento: Bento, engine: None) -> Iterator[Image]:
    image = build_image(bento)
    yield image
    docker("image", "rm", "--force", image.tag)


@pytest.fixture(scope="module")
def started(image: Image) -> Iterator[Container]:
    with container(image, EDGE, *OPEN) as started:
        yield started


def classify(started: Container, image: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{started.url}/classify", content=image, headers=OCTETS | headers, timeout=60)


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_it_answers_as_the_model_does(bento, started):
    assert httpx.get(f"{started.url}/readyz").status_code == 200
    pixels = np.asarray(Picture.new("RGB", (8, 8), (10, 20, 240)))
    (expected,) = OnnxPredictor(bento.path / "src/model")(pixels[None])
    (first, *_) = classify(started, BLUE).json()["predictions"]
    assert first == {"label": "blue", "probability": pytest.approx(float(expected.max()), abs=1e-6)}


def test_its_health_is_seen(started):
    until(lambda: started.state()["Health"]["Status"] == "healthy")


def test_it_is_confined(started):
    assert started.run("id", "-u") == "1034"
    status = dict(line.split(":\t") for line in started.run("cat", "/proc/1/status").splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    with pytest.raises(UserError, match="Read-only file system"):
        started.run("touch", "/app/model/new")


def test_without_a_read_only_root_it_cannot_change_itself_either(image):
    with container(image, EDGE, *OPEN, "--read-only=false") as started:
        assert started.run("find", "/app", "/opt", "/usr/local", "-writable", "-not", "-type", "l") == ""


def test_its_labels_lead_back_to_the_data(bento, image):
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image.tag))
    assert image.tag == f"convoy/{bento.tag}"
    assert labels["convoy.bento"] == bento.tag
    assert {labels[f"convoy.{name}"] for name in ("run_id", "data_version", "git_commit")} == {
        "run-1",
        "data-1",
        "0a1b2c3",
    }
    assert labels["org.opencontainers.image.revision"] == "0a1b2c3"
    assert labels["org.opencontainers.image.title"] == "image tests v3 for edge"
    assert find_image(image.tag) == image
    assert find_image("convoy/image-tests:nowhere") is None


def test_its_list_of_contents_is_what_is_installed(bento, started):
    beside = json.loads((bento.path / SBOM_FILE).read_text())
    assert json.loads(started.run("cat", SBOM_PATH)) == beside
    purls = {component["purl"] for component in beside["components"] if "purl" in component}
    folders = started.run("find", "/opt", "/usr", "/app", "-name", "*.dist-info", "-type", "d").splitlines()
    assert len(folders) == len([purl for purl in purls if purl.startswith("pkg:pypi/")]) > 10
    debian = started.run("sh", "-c", "dpkg-query -W -f '${Package} ${Version}\\n'").splitlines()
    assert len(debian) == len([purl for purl in purls if purl.startswith("pkg:deb/")]) > 20
    # Pinned to what the model was tried with here; BentoML has packed it, and stays outside.
    packages = {*EDGE.packages} - {"bentoml"}
    assert {f"pkg:pypi/{name}@{version(name)}" for name in packages} <= purls
    refs = {component["bom-ref"] for component in beside["components"]} | {"image"}
    assert {ref for one in beside["dependencies"] for ref in [one["ref"], *one["dependsOn"]]} == refs


def test_it_holds_no_tools(started):
    tools = "cc gcc g++ c++ clang ld as make git pip pip3 uv curl wget strip"
    assert started.run("sh", "-c", f"for tool in {tools}; do command -v $tool || :; done") == ""
    for module in ("pip", "ensurepip", "setuptools", "bentoml", "torch", "mlflow"):
        with pytest.raises(UserError, match=f"No module named '{module}'"):
            started.run("python", "-c", f"import {module}")


def test_it_starts_from_bytecode(started):
    program = """
import sys, importlib.util, pathlib
import serving.endpoint.server, serving.endpoint.setup, serving.endpoint.classifier, onnxruntime, uvloop
specs = [module.__spec__ for module in list(sys.modules.values()) if getattr(module, "__spec__", None)]
print([spec.origin for spec in specs if spec.has_location and spec.cached and not pathlib.Path(spec.cached).exists()])
"""
    assert started.run("python", "-c", program) == "[]"


def test_an_altered_source_is_what_runs(image, tmp_path):
    (tmp_path / "server.py").write_text("raise SystemExit('this is altered')\n")
    mount = ("--volume", f"{tmp_path}/server.py:/app/serving/endpoint/server.py:ro")
    with container(image, EDGE, *OPEN, *mount, ready=False) as ended:
        until(lambda: ended.state()["Status"] == "exited")
        assert ended.log() == "this is altered"


@pytest.mark.parametrize("name", ["edge", "cpu"])
def test_it_is_slim(name, bento, image, tmp_path):
    if name == "cpu":
        bento = pack(tmp_path, "cpu")
        image = build_image(bento)
    base = inspect_image(TARGETS[name].base_image)
    model = (bento.path / "src/model/model.onnx").stat().st_size
    if name == "cpu":
        docker("image", "rm", image.tag)
    assert image.size_bytes - base.size_bytes - model < MAX_MEGABYTES[name] * 1e6


def test_it_asks_for_a_token(image):
    with container(image, EDGE, ready=False) as ended:
        until(lambda: ended.state()["Status"] == "exited")
        assert ended.state()["ExitCode"] == 1
        log = ended.log()
        assert "no token is asked for" in log
        assert "Traceback" not in log
    token, line = new_token("tests")
    with container(image, EDGE, "--env", f"CONVOY_TOKENS={line}") as started:
        assert classify(started, BLUE).status_code == 401
        assert classify(started, BLUE, authorization=f"Bearer {token}").status_code == 200
        until(lambda: started.state()["Health"]["Status"] == "healthy")


def test_sigterm_ends_it_after_the_requests_in_flight(image):
    head = f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(BLUE)}\r\n\r\n"
    with container(image, EDGE, *OPEN) as started:
        with socket.create_connection(("127.0.0.1", started.port), timeout=20) as connection:
            connection.sendall(head.encode() + BLUE[:-1])
            time.sleep(0.5)
            start = time.monotonic()
            docker("kill", "--signal", "TERM", started.id)
            until(lambda: not answers(started.port, "/readyz"))
            connection.sendall(BLUE[-1:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        docker("wait", started.id, timeout=20)
        assert time.monotonic() - start < 8
        assert started.state()["ExitCode"] == 0


def test_an_altered_model_is_never_ready(bento, image, tmp_path):
    altered = tmp_path / "model.onnx"
    altered.write_bytes((bento.path / "src/model/model.onnx").read_bytes() + b"\0")
    mount = ("--volume", f"{altered}:/app/model/model.onnx:ro")
    with container(image, EDGE, *OPEN, *mount, ready=False) as started:
        until(lambda: answers(started.port, "/livez"))
        assert httpx.get(f"{started.url}/readyz").status_code == 503
        assert classify(started, BLUE).status_code == 503
        with pytest.raises(UserError, match=r"cannot serve its model:\n.*model.onnx was altered after it was exported"):
            wait_until_ready([Classifier.read(*json.loads(docker("inspect", started.id)))], seconds=3600)
        # The engine's word is what `docker compose up --wait` goes by.
        until(lambda: started.state()["Health"]["Status"] == "unhealthy")


def test_hostile_images_stay_within_its_memory(started):
    for name, content in hostile().items():
        response = classify(started, content)
        assert response.status_code < 500, name
        assert response.json().keys() in ({"predictions", "uncertain", "model"}, {"error", "detail"})
    assert classify(started, BLUE).json()["predictions"][0]["label"] == "blue"
    state = started.state()
    assert (state["Running"], state["OOMKilled"]) == (True, False)
    assert started.memory_bytes() < EDGE.memory_mb * 1e6


def hostile() -> dict[str, bytes]:
    """Bombs, halves, lies and noise."""
    rng = np.random.default_rng(0)
    whole = {kind: picture((200, 50, 0), side=64, kind=kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")}
    halves = {f"half {kind}": content[: len(content) // 2] for kind, content in whole.items()}
    flipped = {
        f"flipped {kind} {number}": bytes(byte ^ 255 if rng.random() < 0.02 else byte for byte in content)
        for kind, content in whole.items()
        for number in range(10)
    }
    # The last is beyond the limit of pixels, the others just below it: one colour compresses to nothing.
    sides = {"PNG": 7000, "JPEG": 7000, "WEBP": 7000, "TIFF": 1500, "GIF": 9000}
    bombs = {f"bomb {kind}": picture((200, 50, 0), side, kind) for kind, side in sides.items()}
    return {"noise": rng.bytes(100_000), "one byte": b"\x89", **halves, **flipped, **bombs}


def test_a_full_volume_does_no_harm(image):
    with container(image, EDGE, *OPEN, "--tmpfs", "/tmp:size=64k") as started:
        with pytest.raises(UserError, match="No space left"):
            started.run("sh", "-c", "head -c 100000 /dev/zero > ~/full")
        assert classify(started, BLUE).status_code == 200
        large = np.random.default_rng(0).bytes(3_000_000)
        form = httpx.post(f"{started.url}/classify/batch", files=[("image", BLUE), ("image", large)], timeout=60)
        assert [result.keys() for result in form.json()["results"]] == [
            {"predictions", "uncertain"},
            {"error", "detail"},
        ]
        assert httpx.get(f"{started.url}/metrics").status_code == 200


def test_an_endpoint_that_is_never_ready_makes_no_image(bento, tmp_path):
    broken = bento.model_copy(update={"path": tmp_path / "broken", "tag": "image-tests:broken"})
    shutil.copytree(bento.path, broken.path)
    manifest = read_model_manifest(broken.path / "src/model")
    golden = manifest.golden.model_copy(update={"probabilities": (0.5, 0.3, 0.2)})
    write_manifest(broken.path / "src/model", manifest.model_copy(update={"golden": golden}))
    with pytest.raises(UserError, match=r"otherwise than measured .* answers /readyz with 503"):
        build_image(broken)
    assert find_image(image_tag(broken)) is None
