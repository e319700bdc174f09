"""What strangers send: a real endpoint must answer, stay alive and keep its memory, whatever it is."""

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

import httpx
import psutil
import pytest
from test_serving_classifier import BLUE, OCTETS, make_model, picture

from benchmarks.attack.watch import Watch
from data.images.decode import DecodeError, Preprocessing, TooLargeError, decode
from serving.config import ServingConfig
from serving.endpoint.request_body import FULL_BODIES, READ_SECONDS
from serving.packaging.bento import Bento, build_bento
from serving.packaging.local_endpoint import Endpoint
from serving.targets import TARGETS

pytestmark = pytest.mark.slow

HOSTILE = Path(os.environ.get("CONVOY_HOSTILE_IMAGES", Path(__file__).parents[2] / "shared/data/robust"))
"""A folder of broken images, of any origin."""
MAX_PIXELS = 50_000_000
GROWTH = 128 * 2**20
"""Bytes that an endpoint may need more than when it was idle: half of what a container of 256 MB has."""


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Bento:
    model = make_model(tmp_path_factory.mktemp("model"), max_pixels=MAX_PIXELS)
    return build_bento(model, ServingConfig(max_body_mb=32), tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def endpoint(bento: Bento) -> Iterator[Endpoint]:
    with Endpoint(bento) as endpoint:
        yield endpoint


@contextmanager
def watched(endpoint: Endpoint) -> Iterator[Watch]:
    with Watch(psutil.Process(endpoint._process.pid)) as watch:
        yield watch
    assert watch.is_alive_still


def send_all(url: str, requests: Iterator[tuple[str, dict]], *, at_once: int) -> dict[str, int]:
    """Post every request, `at_once` of them at a time; the statuses by the request's name."""
    statuses = {}

    async def work(client: httpx.AsyncClient) -> None:
        for name, request in requests:
            response = await client.post(**request)
            statuses[name] = response.status_code
            assert response.json().keys() & {"predictions", "results", "error"}

    async def run() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await asyncio.gather(*(work(client) for _ in range(at_once)))

    asyncio.run(run())
    return statuses


@pytest.fixture(scope="module")
def hostile() -> list[Path]:
    if not HOSTILE.is_dir():
        pytest.skip(f"no folder {HOSTILE.name} of broken images: name one in CONVOY_HOSTILE_IMAGES")
    return sorted(path for path in HOSTILE.rglob("*") if path.is_file())


def test_hostile_images_get_an_answer(endpoint, hostile):
    def requests() -> Iterator[tuple[str, dict]]:
        for path in hostile:
            yield str(path), {"url": "/classify", "content": path.read_bytes(), "headers": OCTETS}

    with watched(endpoint) as watch:
        statuses = send_all(endpoint.url, requests(), at_once=8)
    counts = Counter(statuses.values())
    print(f"{len(hostile)} files: {dict(counts)}; {watch.before / 2**20:.0f} to {watch.peak / 2**20:.0f} MiB")
    assert {name: status for name, status in statuses.items() if status >= 500} == {}
    assert len(statuses) == len(hostile)
    assert counts[200] > 0
    assert watch.growth < GROWTH
    assert endpoint.classify(BLUE)["predictions"][0]["label"] == "blue"


def test_work_is_counted_for_every_hostile_image(hostile):
    """Few are refused for their work, all of them broken; and nothing but a `DecodeError` comes out."""
    spec, seconds = Preprocessing(size=64, crop=56, max_pixels=MAX_PIXELS), TARGETS["edge"].decoding_seconds
    refused = []
    for path in hostile:
        try:
            decode(path.read_bytes(), spec, seconds)
        except TooLargeError as error:
            refused += [path.name] * ("processor time" in str(error))
        except DecodeError:
            pass
    assert len(refused) <= 0.005 * len(hostile)


def test_hostile_images_do_not_fail_a_good_one_beside_them(endpoint, hostile):
    good = ("image", ("good", BLUE))
    with watched(endpoint) as watch, httpx.Client(base_url=endpoint.url, timeout=60) as client:
        for start in range(0, len(hostile), 40):
            bad = [("image", ("bad", path.read_bytes())) for path in hostile[start : start + 40]]
            response = client.post("/classify/batch?top_k=1", files=[good, *bad, good])
            assert response.status_code == 200
            first, *others, last = response.json()["results"]
            blue = {"label": "blue", "probability": pytest.approx(0.98, abs=0.01)}
            assert first == last == {"predictions": [blue], "uncertain": False}
            assert len(others) == len(bad)
            assert all(result.keys() in ({"predictions", "uncertain"}, {"error", "detail"}) for result in others)
    assert watch.growth < GROWTH


def test_ten_thousand_requests_leave_nothing_behind(endpoint):
    kinds = [
        {"url": "/classify?top_k=1", "content": picture((10, 20, 240), side=200), "headers": OCTETS},
        {"url": "/classify", "content": b"junk", "headers": OCTETS},
        {"url": "/classify", "files": {"image": BLUE}},
        {"url": "/classify/batch", "files": [("image", BLUE)] * 3},
        {"url": "/nothing", "content": b""},
    ]
    numbers = iter(range(10_000))
    # The first thousand also pays for what is made once, such as threads.
    send_all(endpoint.url, ((str(number), kinds[number % 5]) for number in islice(numbers, 1000)), at_once=32)
    with watched(endpoint) as watch:
        statuses = send_all(endpoint.url, ((str(number), kinds[number % 5]) for number in numbers), at_once=32)
    assert Counter(statuses.values()) == {200: 5400, 400: 1800, 404: 1800}
    assert watch.growth < 32 * 2**20


@contextmanager
def connected(endpoint: Endpoint, sent: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", httpx.URL(endpoint.url).port), timeout=60) as connection:
        connection.sendall(sent)
        yield connection


def head(length: int) -> bytes:
    return f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n".encode()


def test_a_length_that_is_a_lie_harms_nobody_else(endpoint):
    # Longer than announced: the rest is no request, and the connection ends.
    with connected(endpoint, head(len(BLUE)) + BLUE + b"and more") as connection:
        assert b"HTTP/1.1 400 " in b"".join(iter(lambda: connection.recv(65536), b""))
    # More than is allowed: refused without waiting for it.
    with connected(endpoint, head(10**12)) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    # Shorter than announced: given up in time, and others are answered meanwhile.
    with connected(endpoint, head(len(BLUE) + 1) + BLUE) as connection:
        started = time.monotonic()
        assert endpoint.classify(BLUE)["predictions"]
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert READ_SECONDS - 1 < time.monotonic() - started < READ_SECONDS + 5


def test_clients_that_leave_harm_nobody_else(endpoint):
    large = picture((10, 20, 240), side=3000)
    with watched(endpoint) as watch:
        for _ in range(50):
            with connected(endpoint, head(len(large)) + large[: len(large) // 2]):
                pass
            with connected(endpoint, head(len(large)) + large):
                pass
        assert endpoint.classify(BLUE)["predictions"]
    assert watch.growth < GROWTH


def test_large_bodies_at_once_stay_within_bounds(endpoint):
    full = 32_000_000
    with watched(endpoint) as watch, ExitStack() as stack:
        clients = [stack.enter_context(connected(endpoint, head(full) + bytes(full - 1))) for _ in range(12)]
        # Those that found no room have been told so; the others still miss their last byte.
        refused = 0
        for client in clients:
            client.settimeout(0.5)
            with suppress(TimeoutError):
                answer = client.recv(65536)
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"retry-after: 1" in answer
                refused += 1
        assert endpoint.classify(BLUE)["predictions"]
    assert refused == len(clients) - FULL_BODIES
    assert watch.growth < (FULL_BODIES + 1) * full
    # Room is given back when a client leaves.
    assert httpx.post(f"{endpoint.url}/classify", content=bytes(full - 1), headers=OCTETS).status_code == 400
