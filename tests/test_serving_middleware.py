import asyncio
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from serving.endpoint.auth import Tokens
from serving.endpoint.metrics import Metrics
from serving.endpoint.middleware import Front, Route


async def hello(_request: Request) -> Response:
    return Response("hello")


async def forever(_request: Request) -> Response:
    await asyncio.sleep(60)
    raise AssertionError


METRICS = Metrics()
FRONT = Front({"/hello": Route("GET", hello), "/forever": Route("POST", forever)}, Tokens(), lambda: METRICS.of(None))


def ask(method: str, path: str) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(FRONT), base_url="http://test") as client:
            return await client.request(method, path)

    return asyncio.run(run())


def test_head_is_answered_as_get():
    assert ask("HEAD", "/hello").status_code == 200
    refused = ask("HEAD", "/forever")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_an_odd_method_is_not_echoed_at_length():
    assert len(ask("A" * 5000, "/hello").json()["detail"]) < 100


def test_a_websocket_is_closed():
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    asyncio.run(FRONT({"type": "websocket", "path": "/hello"}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_a_request_that_is_broken_off_is_counted_as_a_timeout():
    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(FRONT), base_url="http://test") as client:
            await asyncio.wait_for(client.post("/forever"), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert b'route="/forever",status="504",version=""} 1.0' in METRICS.expose()
