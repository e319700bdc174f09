"""One Bento, asked by the clients of others: BentoML's, and Triton's for the Open Inference Protocol."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from bentoml.exceptions import BentoMLException
from test_serving_classifier import BLUE, CROP, OCTETS, make_model, picture
from test_smoke import free_port
from tritonclient.utils import InferenceServerException

from serving.config import ServingConfig
from serving.endpoint.auth import ALLOW_ANONYMOUS, TOKENS, new_token
from serving.packaging.bento import Bento, build_bento
from serving.packaging.local_endpoint import Endpoint

pytestmark = [
    pytest.mark.slow,
    # pathspec and pydantic say this of what BentoML 1.4 asks them for.
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `__get_pydantic_core_schema__` method:DeprecationWarning"),
]

TOKEN, LINE = new_token("clients")
# As copies: Triton's client adds to the headers that it is given.
BEARER = {"Authorization": f"Bearer {TOKEN}"}
READY_SECONDS = 60


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Bento:
    folder = tmp_path_factory.mktemp("clients")
    return build_bento(make_model(folder / "model"), ServingConfig(top_k=2, max_batch_images=3), folder / "store")


def wait_until_live(url: str, still_runs: Callable[[], bool], log: Callable[[], str]) -> None:
    give_up = time.monotonic() + READY_SECONDS
    while True:
        try:
            if httpx.get(f"{url}/livez", timeout=1).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert still_runs(), log()
        assert time.monotonic() < give_up, log()
        time.sleep(0.1)


@contextmanager
def served_by_bentoml(bento: Bento, folder: Path, **environment: str) -> Iterator[str]:
    """The address of `bentoml serve`, once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", str(bento.path), "--host", "127.0.0.1", "--port", str(port)]
    variables = os.environ | {"BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "true"} | environment
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_live(url, lambda: process.poll() is None, (folder / "log").read_text)
            yield url
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module", params=["our own server", "bentoml serve"])
def url(request: pytest.FixtureRequest, bento: Bento, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An endpoint that asks for a token."""
    if request.param == "bentoml serve":
        with served_by_bentoml(bento, tmp_path_factory.mktemp("serve"), **{TOKENS: LINE}) as address:
            yield address
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKENS, LINE)
        with Endpoint(bento, is_public=True) as endpoint:
            yield endpoint.url


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "blue.png"
    path.write_bytes(BLUE)
    return path


@contextmanager
def bentoml_client(url: str) -> Iterator[Any]:
    with bentoml.SyncHTTPClient(url, token=TOKEN) as client, client._temp_dir:  # left to itself, it warns
        yield client


def ask(url: str, path: str, **request: Any) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.post(f"{url}{path}", headers=BEARER | request.pop("headers", {}), **request).json()
    return answer


def test_bentoml_s_client_gets_the_answers_of_the_raw_path(url, image, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"junk")
    with bentoml_client(url) as client:
        expected = ask(url, "/classify", content=BLUE, headers=OCTETS)
        assert client.classify(image) == client.classify(image=image, top_k=None) == expected
        assert client.classify(image=image, top_k=1)["predictions"] == expected["predictions"][:1]
        batch = client.classify_batch(images=[image, broken], top_k=1)
        assert batch["results"][0]["predictions"] == expected["predictions"][:1]
        assert batch["results"][1] == {"error": "bad_request", "detail": "not an image"}
        for query, label in (("", None), ("?label=red", "red")):
            explained = ask(url, f"/explain{query}", content=BLUE, headers=OCTETS)
            assert client.explain(image=image, label=label) == explained
        with pytest.raises(BentoMLException, match="not an image"):
            client.classify(image=broken)
        with pytest.raises(BentoMLException, match="top_k must be"):
            client.classify(image=image, top_k=0)
        with pytest.raises(BentoMLException, match="3 are allowed"):
            client.classify_batch(images=[image] * 4)
        # An endpoint does not fetch what a stranger names.
        with pytest.raises(BentoMLException, match="send the image as"):
            client.classify(image="http://127.0.0.1:1/secret.png")


def test_what_bentoml_s_client_asks_for_needs_a_token(url):
    for path in ("/schema.json", "/docs.json", "/classify_batch"):
        assert httpx.get(f"{url}{path}").status_code == 401, path


def test_triton_s_client_gets_the_figures_of_the_raw_path(url):
    expected = ask(url, "/classify?top_k=3", content=BLUE, headers=OCTETS)["predictions"]
    by_label = {each["label"]: each["probability"] for each in expected}
    files = triton.InferInput("image", [2], "BYTES")
    files.set_data_from_numpy(np.array([BLUE, picture((240, 20, 10))], dtype=np.object_))
    pixels = triton.InferInput("pixels", [1, CROP, CROP, 3], "UINT8")
    array = np.full((1, CROP, CROP, 3), (10, 20, 240), dtype=np.uint8)
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("Strongest Color", "3", headers=dict(BEARER))
        assert client.get_server_metadata(headers=dict(BEARER))["name"] == "convoy"
        metadata = client.get_model_metadata("Strongest Color", headers=dict(BEARER))
        assert [each["name"] for each in metadata["inputs"]] == ["image", "pixels"]

        both = client.infer("Strongest Color", [files], headers=dict(BEARER), request_id="7")
        assert both.as_numpy("label").tolist() == [b"blue", b"red"]
        assert both.as_numpy("uncertain").tolist() == [False, False]
        for is_binary in (True, False):
            pixels.set_data_from_numpy(array, binary_data=is_binary)
            wanted = [triton.InferRequestedOutput("probabilities", binary_data=is_binary)]
            alone = client.infer("Strongest Color", [pixels], "3", wanted, headers=dict(BEARER))
            assert alone.as_numpy("probabilities").tolist() == [[by_label[name] for name in ("red", "green", "blue")]]
        assert both.as_numpy("probabilities")[0].tolist() == alone.as_numpy("probabilities")[0].tolist()

        with pytest.raises(InferenceServerException, match="no such model"):
            client.infer("Other", [files], headers=dict(BEARER))
        with pytest.raises(InferenceServerException, match="send one of this endpoint's tokens"):
            client.infer("Strongest Color", [files])


def test_bentoml_serve_is_closed_to_other_machines_without_a_token(bento):
    program = """
import asyncio, types
import httpx
from serving.endpoint import service

service.bentoml.get_current_service = lambda: types.SimpleNamespace(classifier=None)
app = service.Shortcut(None)

async def ask(host):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}:3000") as client:
        return (await client.get("/metrics")).status_code

print(*(asyncio.run(ask(host)) for host in ("127.0.0.1", "[::1]", "10.0.0.1", "[2001:db8::1]")))
"""
    environment = {"PYTHONDONTWRITEBYTECODE": "1", "BENTOML_DO_NOT_TRACK": "true"}
    for protection, statuses in (
        ({}, "200 200 401 401"),
        ({TOKENS: LINE}, "200 200 200 200"),
        ({ALLOW_ANONYMOUS: "true"}, "200 200 200 200"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=bento.path / "src",
            env=environment | protection,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == statuses.split(), done.stderr


@pytest.mark.docker
def test_bentoml_s_own_container_is_closed_without_a_token(bento):
    environment = os.environ | {"BENTOML_HOME": str(bento.path.parents[2]), "BENTOML_DO_NOT_TRACK": "true"}
    image, port = f"convoy-test/{bento.path.name}:bentoml", free_port()
    subprocess.run(
        [sys.executable, "-m", "bentoml", "containerize", bento.tag, "--image-tag", image], env=environment, check=True
    )
    command = ["docker", "run", "--rm", "--detach", "--publish", f"127.0.0.1:{port}:3000", "--env", f"{TOKENS}={LINE}"]
    container = subprocess.run([*command, image], capture_output=True, text=True, check=True).stdout.strip()
    logs = ["docker", "logs", container]
    try:
        # The engine accepts connections before the server in the container does, and resets them.
        wait_until_live(f"http://127.0.0.1:{port}", lambda: True, lambda: subprocess.check_output(logs, text=True))
        with bentoml_client(f"http://127.0.0.1:{port}") as client:
            assert client.endpoints.keys() == {"classify", "classify_batch", "explain"}
        assert httpx.get(f"http://127.0.0.1:{port}/model").status_code == 401
    finally:
        subprocess.run(["docker", "rm", "--force", container], check=True, capture_output=True)
        subprocess.run(["docker", "image", "rm", "--force", image], check=True, capture_output=True)
