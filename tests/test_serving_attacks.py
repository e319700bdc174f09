"""A real endpoint is attacked over HTTP: it must stay, stay small, and answer the others."""

from collections.abc import Iterator

import attacks
import httpx
import psutil
import pytest
from test_serving_classifier import make_model

from benchmarks.attack.invalid import INVALID, ask
from benchmarks.attack.watch import Watch
from serving.config import ServingConfig
from serving.packaging.bento import build_bento
from serving.packaging.local_endpoint import Endpoint

pytestmark = pytest.mark.slow

GROWTH = 64 * 2**20
"""Bytes that it may need more than when it was idle: a quarter of what a container of `edge` has."""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    model = make_model(tmp_path_factory.mktemp("model"))
    bento = build_bento(model, ServingConfig(target="edge"), tmp_path_factory.mktemp("store"))
    with attacks.file_limit(attacks.FILES), Endpoint(bento) as endpoint:
        yield endpoint


@pytest.fixture
def port(endpoint: Endpoint) -> Iterator[int]:
    """Where it listens; after the test it is the same process, and has not grown much."""
    with Watch(psutil.Process(endpoint._process.pid)) as watch:
        yield httpx.URL(endpoint.url).port
    assert watch.is_alive_still
    assert watch.growth < GROWTH


@pytest.mark.parametrize("name", INVALID)
def test_what_is_no_valid_request_is_refused_in_json(port, name):
    answer = ask(port, INVALID[name])
    assert 400 <= answer.status < 500
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    # of HEAD, CONNECT and the like there is none
    assert b'"error"' in answer.body


def test_requests_without_an_end_are_refused(port):
    attacks.check_endless_requests(port)


def test_slow_and_silent_clients_are_closed_and_keep_nobody_out(port):
    attacks.check_slow_clients(port)


def test_requests_are_not_piled_up(port):
    attacks.check_pipelined_requests(port)


def test_clients_that_do_not_back_off_are_refused(port):
    attacks.check_overload(port)
