import asyncio
import threading
from collections import Counter
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from test_serving_classifier import BLUE, OCTETS, make_model, picture, softmax_of_means

from models.exported.manifest import ModelManifest
from serving.config import ServingConfig
from serving.endpoint import app as app_module
from serving.endpoint.answers import Examples
from serving.endpoint.app import create_app
from serving.endpoint.auth import Tokens
from serving.endpoint.batching import Limits
from serving.endpoint.classifier import Classifier
from serving.endpoint.middleware import ERRORS

Send = Callable[..., httpx.Response]
ANYONE = Tokens()

LIMITS = Limits(max_batch=1, threads=2, streams=2, patience_seconds=0, max_queue=16, deadline_seconds=10)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(make_model(tmp_path_factory.mktemp("model")))


def sender(
    get_classifier: Callable[[], Classifier | None],
    *,
    tokens: Tokens = ANYONE,
    examples: Examples | None = None,
    **options: float,
) -> Send:
    """Requests to one app."""
    config = ServingConfig.model_validate(options)
    app = create_app(get_classifier, config, limits=LIMITS, tokens=tokens, examples=examples)

    def send(method: str, path: str, **request: object) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **request)

        return asyncio.run(run())

    return send


@pytest.fixture(scope="module")
def send(classifier: Classifier) -> Send:
    return sender(lambda: classifier, top_k=2, max_body_mb=0.1, max_batch_images=4)


@pytest.mark.parametrize(
    "request_",
    [
        {"content": BLUE, "headers": {"content-type": "image/png"}},
        {"content": BLUE, "headers": {"content-type": "IMAGE/WHATEVER; q=1"}},
        {"content": BLUE, "headers": OCTETS},
        {"files": {"image": ("a.png", BLUE)}, "data": {"note": "fields beside it are ignored"}},
    ],
)
def test_classifies_a_body_or_a_form(send, request_):
    response = send("POST", "/classify", **request_)

    assert response.status_code == 200
    answer = response.json()
    assert [prediction["label"] for prediction in answer["predictions"]] == ["blue", "green"]
    _, green, blue = softmax_of_means((10, 20, 240))
    assert [prediction["probability"] for prediction in answer["predictions"]] == pytest.approx([blue, green], abs=1e-5)
    assert answer["model"] == {
        "name": "Strongest Color",
        "version": "3",
        "run_id": "run-1",
        "data_version": "data-1",
    }


@pytest.mark.parametrize(("top_k", "expected"), [("1", 1), ("3", 3), ("999999999", 3)])
def test_top_k_asks_for_more_or_fewer_classes(send, top_k, expected):
    response = send("POST", f"/classify?top_k={top_k}", content=BLUE, headers=OCTETS)
    assert len(response.json()["predictions"]) == expected


@pytest.mark.parametrize("top_k", ["0", "-1", "1.5", "two", "", "1" * 5000, "%D9%A1", "1_0"])
def test_a_bad_top_k_is_refused(send, top_k):
    response = send("POST", f"/classify?top_k={top_k}", content=BLUE, headers=OCTETS)
    assert (response.status_code, response.json()["error"]) == (422, "invalid_request")


FORM = {"content-type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("method", "path", "request_", "status"),
    [
        ("POST", "/classify", {"content": b"", "headers": OCTETS}, 400),
        ("POST", "/classify", {"content": b"not an image", "headers": OCTETS}, 400),
        ("POST", "/classify", {"content": BLUE[:60], "headers": OCTETS}, 400),
        ("POST", "/classify", {"content": picture((0, 0, 0), side=101), "headers": OCTETS}, 413),
        ("POST", "/classify", {"content": b"x" * 100_001, "headers": OCTETS}, 413),
        ("POST", "/classify", {"content": BLUE}, 415),
        ("POST", "/classify", {"json": {"image": "aGVsbG8="}}, 415),
        ("POST", "/classify", {"data": {"image": "x"}}, 415),
        ("POST", "/classify", {"files": {"picture": BLUE}}, 422),
        ("POST", "/classify", {"files": {"image": (None, "a field, not a file")}}, 422),
        ("POST", "/classify", {"files": {"image": ("empty.png", b"")}}, 400),
        ("POST", "/classify", {"files": [("image", BLUE), ("image", BLUE)]}, 422),
        ("POST", "/classify", {"files": {"image": b"x" * 100_001}}, 413),
        ("POST", "/classify", {"content": b"--b\r\n", "headers": FORM}, 422),
        ("POST", "/classify", {"content": b"garbage", "headers": FORM}, 400),
        ("POST", "/classify", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ("GET", "/classify", {}, 405),
        ("DELETE", "/model", {}, 405),
        ("GET", "/nothing", {}, 404),
        ("POST", "/", {}, 405),
        ("POST", "/classify/batch", {"content": BLUE, "headers": OCTETS}, 415),
        ("POST", "/classify/batch", {"files": {"picture": BLUE}}, 422),
        ("POST", "/classify/batch", {"files": [("image", BLUE)] * 5}, 422),
        ("POST", "/explain?label=violet", {"content": BLUE, "headers": OCTETS}, 422),
        ("POST", "/explain", {"content": b"junk", "headers": OCTETS}, 400),
        ("POST", "/classify/", {"content": BLUE, "headers": OCTETS}, 404),
        ("PUT", "/../../etc/passwd", {}, 404),
    ],
)
def test_bad_requests_are_refused_in_json(send, method, path, request_, status):
    response = send(method, path, **request_)

    assert response.status_code == status
    assert response.json().keys() == {"error", "detail"}
    assert response.json()["error"] == ERRORS[status]
    assert response.json()["detail"]


def test_a_refused_method_names_those_allowed(send):
    assert send("GET", "/classify").headers["allow"] == "POST"


def test_without_a_model_nothing_is_answered():
    send = sender(lambda: None)
    for response in (send("POST", "/classify", content=BLUE, headers=OCTETS), send("GET", "/model")):
        assert (response.status_code, response.json()["error"]) == (503, "not_ready")
        assert response.headers["retry-after"]
    assert send("GET", "/metrics").status_code == 200


def test_an_unforeseen_failure_tells_nothing_of_itself(send, classifier, monkeypatch, caplog):
    def fail(images: np.ndarray) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(classifier, "predict", fail)
    response = send("POST", "/classify", content=BLUE, headers=OCTETS)
    assert (response.status_code, response.json()["error"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "/secret/path" in caplog.text


def test_the_model_describes_itself(send, classifier):
    manifest = send("GET", "/model").json()
    assert "image" not in manifest["golden"]
    manifest["golden"]["image"] = classifier.manifest.golden.image
    assert ModelManifest.model_validate(manifest) == classifier.manifest


def test_examples_are_those_that_were_packed(classifier):
    examples: Examples = {"examples": [{"label": "blue", "image": "iVBORw0KGgo="}]}
    for given, told in ((None, {"examples": []}), (examples, examples)):
        assert sender(lambda: classifier, examples=given)("GET", "/examples").json() == told


def test_a_long_prediction_does_not_hold_up_other_requests(classifier, monkeypatch):
    started, finish = threading.Event(), threading.Event()
    answers = []

    predict = classifier.predict

    def slow(images: np.ndarray) -> np.ndarray:
        started.set()
        assert finish.wait(10)
        return predict(images)

    monkeypatch.setattr(classifier, "predict", slow)
    app = create_app(lambda: classifier, ServingConfig(), limits=LIMITS, tokens=ANYONE)

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            long = asyncio.create_task(client.post("/classify", content=BLUE, headers=OCTETS))
            while not started.is_set():
                await asyncio.sleep(0.001)
            answers.append((await client.get("/model")).status_code)
            finish.set()
            await long

    asyncio.run(run())
    assert answers == [200]


def test_explanations_wait_in_a_short_queue(classifier, monkeypatch):
    finish = threading.Event()

    def slow(*_: object) -> np.ndarray:
        assert finish.wait(10)
        return np.zeros((8, 8))

    monkeypatch.setattr(app_module, "weigh_evidence", slow)
    app = create_app(lambda: classifier, ServingConfig(), limits=LIMITS, tokens=ANYONE)

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            asked = [asyncio.create_task(client.post("/explain", content=BLUE, headers=OCTETS)) for _ in range(8)]
            while sum(task.done() for task in asked) < 3:
                await asyncio.sleep(0.001)
            # The others do not wait for explanations.
            assert (await client.post("/classify", content=BLUE, headers=OCTETS)).status_code == 200
            finish.set()
            return await asyncio.gather(*asked)

    responses = asyncio.run(run())
    # One at work and four that wait.
    assert Counter(response.status_code for response in responses) == {200: 5, 503: 3}
    assert {response.headers.get("retry-after") for response in responses if response.status_code == 503} == {"1"}


def samples(send: Send) -> dict[str, float]:
    lines = send("GET", "/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_requests_are_counted_by_route_status_and_model(classifier):
    send = sender(lambda: classifier)
    send("POST", "/classify", content=BLUE, headers=OCTETS)
    send("POST", "/classify", content=b"junk", headers=OCTETS)
    send("POST", "/classify/batch", files=[("image", BLUE), ("image", b"junk"), ("image", b"")])
    for path in range(20):
        send("GET", f"/{path}")

    found = samples(send)
    model = 'model="Strongest Color"'
    assert {name: value for name, value in found.items() if "_total{" in name} == {
        f'convoy_uncertain_total{{{model},version="3"}}': 0,
        f'convoy_requests_total{{{model},route="/classify",status="200",version="3"}}': 1,
        f'convoy_requests_total{{{model},route="/classify",status="400",version="3"}}': 1,
        f'convoy_requests_total{{{model},route="/classify/batch",status="200",version="3"}}': 1,
        f'convoy_requests_total{{{model},route="other",status="404",version="3"}}': 20,
        f'convoy_rejections_total{{{model},reason="bad_request",version="3"}}': 3,
        f'convoy_rejections_total{{{model},reason="not_found",version="3"}}': 20,
    }
    assert found[f'convoy_request_seconds_count{{{model},route="/classify",version="3"}}'] == 2
    # BLUE is blue to 98 %, twice.
    assert found[f'convoy_confidence_bucket{{le="0.95",{model},version="3"}}'] == 0
    assert found[f'convoy_confidence_bucket{{le="0.99",{model},version="3"}}'] == 2


def test_each_image_of_a_batch_has_an_answer_or_a_problem(send):
    files = [("image", BLUE), ("image", b"junk"), ("image", ("empty.png", b"")), ("image", picture((250, 0, 0)))]
    response = send("POST", "/classify/batch?top_k=1", files=files)
    assert response.status_code == 200
    answer = response.json()
    assert answer["model"]["version"] == "3"
    assert [result.get("error") or result["predictions"][0]["label"] for result in answer["results"]] == [
        "blue",
        "bad_request",
        "bad_request",
        "red",
    ]
    assert all(result.keys() in ({"predictions", "uncertain"}, {"error", "detail"}) for result in answer["results"])


def test_an_answer_says_how_long_it_took(send):
    timing = send("POST", "/classify", content=BLUE, headers=OCTETS).headers["server-timing"]
    assert 0 < float(timing.removeprefix("app;dur=")) < 10_000
