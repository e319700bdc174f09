import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_serving_classifier import BLUE, OCTETS, make_model, picture, softmax_of_means

from models.manifest import ModelManifest
from serving import app as app_module
from serving.app import ERRORS, create_app
from serving.classifier import Classifier
from serving.config import ServingConfig

Send = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(make_model(tmp_path_factory.mktemp("model")))


def sender(get_classifier: Callable[[], Classifier | None], *, failures: bool = True, **options: float) -> Send:
    """One request to a fresh app; `failures=False` hides from the test what the server would only log."""
    app = create_app(get_classifier, ServingConfig.model_validate(options), threads=2)

    def send(method: str, path: str, **request: object) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=failures)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **request)

        return asyncio.run(run())

    return send


@pytest.fixture(scope="module")
def send(classifier: Classifier) -> Send:
    return sender(lambda: classifier, top_k=2, max_body_mb=0.1)


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
        ("POST", "/classify", {"files": [("image", BLUE), ("image", BLUE)]}, 400),
        ("POST", "/classify", {"files": {"image": b"x" * 100_001}}, 413),
        ("POST", "/classify", {"content": b"--b\r\n", "headers": FORM}, 422),
        ("POST", "/classify", {"content": b"garbage", "headers": FORM}, 400),
        ("POST", "/classify", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ("GET", "/classify", {}, 405),
        ("DELETE", "/model", {}, 405),
        ("GET", "/", {}, 404),
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


def test_a_body_of_unknown_length_is_read_no_further_than_the_limit(send):
    given_out = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            given_out.append(10_000)
            yield b"x" * 10_000

    response = send("POST", "/classify", content=endless(), headers=OCTETS)

    assert response.status_code == 413
    assert sum(given_out) == 110_000  # the first piece beyond the limit of 100,000


def test_a_body_that_trickles_is_given_up(send, monkeypatch):
    monkeypatch.setattr(app_module, "READ_SECONDS", 0.1)

    async def trickle() -> AsyncIterator[bytes]:
        yield BLUE[:10]
        await asyncio.sleep(60)

    assert send("POST", "/classify", content=trickle(), headers=OCTETS).status_code == 408


def test_without_a_model_nothing_is_answered():
    send = sender(lambda: None)
    for response in (send("POST", "/classify", content=BLUE, headers=OCTETS), send("GET", "/model")):
        assert (response.status_code, response.json()["error"]) == (503, "not_ready")
    assert send("GET", "/metrics").status_code == 200


def test_an_unforeseen_failure_tells_nothing_of_itself():
    def fail() -> Classifier:
        raise RuntimeError("/secret/path")

    response = sender(fail, failures=False)("GET", "/model")
    assert (response.status_code, response.json()["error"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert "Traceback" not in response.text


def test_the_model_describes_itself(send, classifier):
    manifest = send("GET", "/model").json()
    assert "image" not in manifest["golden"]
    manifest["golden"]["image"] = classifier.manifest.golden.image
    assert ModelManifest.model_validate(manifest) == classifier.manifest


def test_a_long_prediction_does_not_hold_up_other_requests(classifier, monkeypatch):
    started, finish = threading.Event(), threading.Event()
    answers = []

    def slow(image: bytes, top_k: int) -> None:
        started.set()
        assert finish.wait(10)

    monkeypatch.setattr(classifier, "classify", slow)
    app = create_app(lambda: classifier, ServingConfig(), threads=1)

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


def test_requests_are_counted_by_route_status_and_model(classifier):
    send = sender(lambda: classifier)
    send("POST", "/classify", content=BLUE, headers=OCTETS)
    send("POST", "/classify", content=b"junk", headers=OCTETS)
    for path in range(20):
        send("GET", f"/{path}")

    lines = send("GET", "/metrics").text.splitlines()
    counts = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if "_total{" in line}
    model = 'model="Strongest Color"'
    assert counts == {
        f'convoy_requests_total{{{model},route="/classify",status="200",version="3"}}': 1,
        f'convoy_requests_total{{{model},route="/classify",status="400",version="3"}}': 1,
        f'convoy_requests_total{{{model},route="other",status="404",version="3"}}': 20,
    }
    assert f'convoy_request_seconds_count{{{model},route="/classify",version="3"}} 2.0' in lines


KINDS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "TGA", "PCX", "SGI", "DDS", "JPEG2000")


@st.composite
def broken_pictures(draw: st.DrawFn) -> bytes:
    """A real file with some bytes changed and its end cut off: further into the decoders than noise gets."""
    file = bytearray(picture((10, 200, 30), side=16, kind=draw(st.sampled_from(KINDS))))
    for _ in range(draw(st.integers(0, 8))):
        file[draw(st.integers(0, len(file) - 1))] = draw(st.integers(0, 255))
    return bytes(file[: draw(st.integers(0, len(file)))]) if draw(st.booleans()) else bytes(file)


@settings(max_examples=150, deadline=None)
@given(
    body=st.one_of(st.binary(max_size=300), broken_pictures()),
    content_type=st.sampled_from(
        [
            "image/png",
            "application/octet-stream",
            "multipart/form-data; boundary=b",
            "multipart/form-data",
            "text/plain",
        ]
    ),
    wrapped=st.booleans(),
)
def test_no_bytes_make_the_server_fail(send, body, content_type, wrapped):
    request = {"files": {"image": body}} if wrapped else {"content": body, "headers": {"content-type": content_type}}
    response = send("POST", "/classify", **request)
    assert response.status_code < 500
    assert response.json().keys() in ({"predictions", "model"}, {"error", "detail"})


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=60))
def test_no_content_type_makes_the_server_fail(send, text):
    for start in ("", "multipart/form-data; boundary=", "multipart/form-data; charset="):
        headers = {b"content-type": (start + text).encode("latin-1")}
        body = b"--" + text.encode("latin-1") + b'\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n'
        assert send("POST", "/classify", content=body, headers=headers).status_code < 500
