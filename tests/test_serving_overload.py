import asyncio
import threading
from typing import Any

import httpx
import numpy as np
import pytest
from test_serving_app import ANYONE
from test_serving_classifier import BLUE, OCTETS, make_model

from serving.config import ServingConfig
from serving.endpoint.app import create_app
from serving.endpoint.batching import Limits
from serving.endpoint.classifier import Classifier


@pytest.fixture
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(make_model(tmp_path_factory.mktemp("model")))


def test_what_waits_too_long_and_too_much_is_refused_at_once(classifier, monkeypatch):
    finish = threading.Event()
    monkeypatch.setattr(classifier, "predict", lambda images: finish.wait(10) and np.zeros((len(images), 3)))
    limits = Limits(max_batch=4, threads=1, streams=1, patience_seconds=0, max_queue=2, deadline_seconds=0.2)
    app = create_app(lambda: classifier, ServingConfig(), limits=limits, tokens=ANYONE)

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            asked = [client.post("/classify", content=BLUE, headers=OCTETS) for _ in range(3)]
            try:
                return await asyncio.gather(*asked)
            finally:
                finish.set()

    responses = asyncio.run(run())
    assert {(response.status_code, response.json()["error"]) for response in responses} == {(503, "overloaded")}
    assert all(response.headers["retry-after"] for response in responses)
    assert sorted("too late" in response.json()["detail"] for response in responses) == [False, True, True]


def test_an_endpoint_whose_threads_hang_is_not_ready_until_they_go_on(classifier, monkeypatch):
    finish = threading.Event()
    monkeypatch.setattr(classifier, "decode_small", lambda image: finish.wait(10) and np.zeros((8, 8, 3), np.uint8))
    limits = Limits(max_batch=1, threads=1, streams=1, patience_seconds=0, max_queue=2, deadline_seconds=0.1)
    app = create_app(lambda: classifier, ServingConfig(), limits=limits, tokens=ANYONE)

    async def until(client: httpx.AsyncClient, status: int) -> httpx.Response:
        async with asyncio.timeout(10):
            while (response := await client.get("/readyz")).status_code != status:
                await asyncio.sleep(0.01)
        assert (await client.get("/livez")).status_code == 200
        return response

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await until(client, 200)
            try:
                assert (await client.post("/classify", content=BLUE, headers=OCTETS)).status_code == 503
                return await until(client, 503)
            finally:
                finish.set()
                await until(client, 200)

    assert "longer than the deadline" in asyncio.run(run()).json()["detail"]


def test_a_client_that_has_gone_while_it_waited_costs_no_prediction(classifier, monkeypatch):
    finish, sizes, statuses = threading.Event(), [], []

    def slow(images: np.ndarray) -> np.ndarray:
        assert finish.wait(10)
        sizes.append(len(images))
        return np.full((len(images), 3), 1 / 3, np.float32)

    monkeypatch.setattr(classifier, "predict", slow)
    limits = Limits(max_batch=4, threads=1, streams=1, patience_seconds=0, max_queue=8, deadline_seconds=10)
    app = create_app(lambda: classifier, ServingConfig(), limits=limits, tokens=ANYONE)
    headers = [(b"content-type", b"application/octet-stream")]
    scope = {"type": "http", "method": "POST", "path": "/classify", "query_string": b"", "headers": headers}

    async def run() -> None:
        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        stays = asyncio.Queue[dict[str, Any]]()
        goes = asyncio.Queue[dict[str, Any]]()
        for messages in (stays, goes):
            messages.put_nowait({"type": "http.request", "body": BLUE})
        first = asyncio.create_task(app(scope, stays.get, send))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(app(dict(scope), goes.get, send))
        await asyncio.sleep(0.05)
        goes.put_nowait({"type": "http.disconnect"})
        await second
        finish.set()
        await first

    asyncio.run(run())
    assert (statuses, sizes) == ([400, 200], [1])
