import asyncio
import dataclasses
import json
import time
from contextlib import ExitStack

import httpx
import pytest
from listening import connect, listening
from starlette.requests import Request
from starlette.responses import Response
from test_serving_app import ANYONE, LIMITS, Send, sender
from test_serving_classifier import BLUE, OCTETS, make_model

from serving.config import ServingConfig
from serving.endpoint import admission
from serving.endpoint.admission import Asks, Bucket, Quotas, Room, Visit
from serving.endpoint.app import create_app
from serving.endpoint.auth import Tokens, new_token
from serving.endpoint.batching import OverloadedError
from serving.endpoint.classifier import Classifier
from serving.endpoint.metrics import Metrics
from serving.endpoint.middleware import VISIT, Front, Route

METRICS = Metrics()


def visit(client: str = "ann") -> Visit:
    return Visit(b"id", 0.0, client)


def test_a_queue_that_is_full_refuses_before_the_body_is_read():
    waiting, read = [1], []

    async def answer(request: Request) -> Response:
        read.append(await request.body())
        return Response("ok")

    route = Route("POST", answer, asks=Asks.IMAGES, room=Room("images", lambda: waiting[0], 1))
    with listening(Front({"/": route}, Tokens(), lambda: METRICS.of(None))) as port, connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n")
        answer_ = connection.recv(65536)
        assert answer_.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in answer_
        # The connection is the next request's, once the body of this one has passed.
        waiting[0] = 0
        connection.sendall(b"12345POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n6")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert read == [b"6"]


def test_requests_whose_bodies_came_with_their_heads_have_their_places():
    room = Room("images", lambda: 0, 2)

    async def run() -> None:
        first, second = visit(), visit()
        room.enter(first)
        room.enter(second)
        with pytest.raises(OverloadedError, match="too many images at once"):
            room.enter(visit())
        first.arrived()
        room.enter(visit())
        # The app has read what was there by now; what is missing has no place until it is here.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        room.enter(visit())
        second.leave()

    asyncio.run(run())


def test_slow_bodies_keep_nobody_out(classifier):
    limits = dataclasses.replace(LIMITS, max_queue=2)
    app = create_app(lambda: classifier, ServingConfig(), limits=limits, tokens=ANYONE)
    head = b"POST /classify HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    with listening(app) as port, ExitStack() as stack:
        for _ in range(3):
            slow = stack.enter_context(connect(port, head % 100 + b"\x89PNG"))
            # It is answered by a loop that has read what came before.
            with connect(port, b"GET /livez HTTP/1.1\r\n\r\n") as other:
                assert other.recv(65536).startswith(b"HTTP/1.1 200 ")
        with connect(port, head % len(BLUE) + BLUE) as other:
            assert other.recv(65536).startswith(b"HTTP/1.1 200 ")
        slow.setblocking(False)
        with pytest.raises(BlockingIOError):
            slow.recv(1)


def test_a_burst_is_admitted_for_a_second_and_then_the_rate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bucket = Bucket(4)
    for _ in range(4):
        assert bucket.seconds_left() == 0
        bucket.take(1)
    assert bucket.seconds_left() == 0.25
    now[0] += 0.25
    assert bucket.seconds_left() == 0
    # What is taken in excess is missing later.
    bucket.take(9)
    assert bucket.seconds_left() == 2.25
    now[0] += 1000
    assert bucket.seconds_left() == 0
    for _ in range(4):
        bucket.take(1)
    assert bucket.seconds_left() == 0.25


def test_quotas_of_clients_that_are_gone_are_forgotten(monkeypatch):
    monkeypatch.setattr(admission, "MAX_QUOTAS", 2)
    quotas = Quotas(ServingConfig(token_requests_per_second=0.001))
    for name in ("ann", "bob", "eve", "ann"):
        quotas.check(visit(name), Asks.NOTHING)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(make_model(tmp_path_factory.mktemp("model")))


def known(classifier: Classifier, **options: float) -> tuple[Send, dict[str, str], dict[str, str]]:
    """Requests to an app that knows two clients, and the headers of each."""
    pairs = [new_token(name) for name in ("ann", "bob")]
    tokens = Tokens({line.split()[0]: line.split()[1] for _, line in pairs})
    ann, bob = ({"authorization": f"Bearer {token}"} for token, _ in pairs)
    return sender(lambda: classifier, tokens=tokens, **options), ann, bob


def test_a_client_has_so_many_requests_a_second_and_others_theirs(classifier):
    send, ann, bob = known(classifier, token_requests_per_second=0.01)
    assert send("GET", "/model", headers=ann).status_code == 200
    refused = send("GET", "/model", headers=ann)
    assert (refused.status_code, refused.json()["error"]) == (429, "too_many_requests")
    assert "0.01 requests a second" in refused.json()["detail"]
    assert 90 < int(refused.headers["retry-after"]) <= 100
    assert send("GET", "/model", headers=bob).status_code == 200
    # Nobody needs a token for these.
    assert {send("GET", path, headers=ann).status_code for path in ("/metrics", "/readyz", "/")} == {200}


def test_the_images_of_a_batch_count_one_by_one(classifier):
    send, ann, _ = known(classifier, token_images_per_second=0.1)
    files = [("image", BLUE)] * 3
    assert send("POST", "/classify/batch", files=files, headers=ann).status_code == 200
    refused = send("POST", "/classify", content=BLUE, headers=OCTETS | ann)
    assert refused.status_code == 429
    assert 20 < int(refused.headers["retry-after"]) <= 30
    assert send("GET", "/model", headers=ann).status_code == 200
    metrics = send("GET", "/metrics").text
    labels = 'model="Strongest Color",token="ann",version="3"'
    assert f"convoy_token_images_total{{{labels}}} 3.0" in metrics
    labels = 'model="Strongest Color",status="429",token="ann",version="3"'
    assert f"convoy_token_requests_total{{{labels}}} 1.0" in metrics


def test_a_client_has_so_many_explanations_at_a_time(classifier):
    quotas = Quotas(ServingConfig(token_explanations=2))
    first, second = visit(), visit()
    quotas.check(first, Asks.EXPLANATION)
    quotas.check(second, Asks.EXPLANATION)
    with pytest.raises(Exception, match="2 explanations at a time"):
        quotas.check(visit(), Asks.EXPLANATION)
    quotas.check(visit(), Asks.IMAGES)
    quotas.check(visit("bob"), Asks.EXPLANATION)
    first.leave()
    quotas.check(visit(), Asks.EXPLANATION)
    # One that was answered holds nothing.
    send, ann, _ = known(classifier, token_explanations=1)
    for _ in range(3):
        assert send("POST", "/explain", content=BLUE, headers=OCTETS | ann).status_code == 200
        assert send("POST", "/explain", content=b"junk", headers=OCTETS | ann).status_code == 400


def test_the_names_of_tokens_in_metrics_are_bounded():
    metrics = Metrics()
    for number in range(300):
        metrics.of(None).asked(f"token-{number}", 200, 1)
    text = metrics.expose().decode()
    assert text.count("convoy_token_requests_total{") == 101
    assert 'convoy_token_requests_total{model="",status="200",token="other",version=""} 200.0' in text


def test_a_request_that_was_let_in_elsewhere_is_not_let_in_again(classifier):
    app = create_app(lambda: classifier, ServingConfig(), limits=LIMITS, tokens=Tokens({"0" * 64: "ann"}))

    async def run() -> httpx.Response:
        async def trusted(scope, receive, send) -> None:
            known = visit()
            known.path = "/model"
            await app(scope | {VISIT: known}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(trusted), base_url="http://test") as client:
            return await client.get("/model")

    assert asyncio.run(run()).status_code == 200


def test_a_log_has_a_line_for_each_request(classifier, capsys):
    send, ann, _ = known(classifier, access_log=True)
    own = {"x-request-id": "0123-abcd"}
    assert send("GET", "/model", headers=ann | own).headers["x-request-id"] == "0123-abcd"
    refused = send("GET", "/nothing?secret=1", headers={"x-request-id": "<script>"})
    assert len(refused.headers["x-request-id"]) == 32
    send("GET", "/readyz")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (
        first.items() >= {"id": "0123-abcd", "method": "GET", "path": "/model", "status": 200, "token": "ann"}.items()
    )
    assert second.items() >= {"id": refused.headers["x-request-id"], "path": "/nothing", "status": 401}.items()
    assert time.time() - first["when"] < 60 > first["seconds"] > 0
    assert "secret" not in str(second)


def test_there_is_no_log_unless_it_is_asked_for(classifier, capsys):
    sender(lambda: classifier)("GET", "/model")
    assert capsys.readouterr().out == ""
