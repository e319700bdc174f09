import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.exceptions import HTTPException
from test_serving_app import Send, sender
from test_serving_classifier import BLUE, OCTETS, make_model

from serving.endpoint import request_body as body_module
from serving.endpoint.classifier import Classifier
from serving.endpoint.request_body import ALWAYS_FITS, FULL_BODIES, Inbox


@pytest.fixture(scope="module")
def send(tmp_path_factory: pytest.TempPathFactory) -> Send:
    classifier = Classifier(make_model(tmp_path_factory.mktemp("model")))
    return sender(lambda: classifier, max_body_mb=0.1)


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
    monkeypatch.setattr(body_module, "READ_SECONDS", 0.1)

    async def trickle() -> AsyncIterator[bytes]:
        yield BLUE[:10]
        await asyncio.sleep(60)

    assert send("POST", "/classify", content=trickle(), headers=OCTETS).status_code == 408


def test_bodies_that_are_held_together_have_a_limit():
    inbox = Inbox(2_000_000)
    holds = [inbox.hold() for _ in range(6)]
    for hold in holds[:FULL_BODIES]:
        hold.add(2_000_000)
    small, large = holds[FULL_BODIES:]
    small.add(ALWAYS_FITS)
    with pytest.raises(HTTPException, match="too many large images") as refused:
        large.add(ALWAYS_FITS + 1)
    assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "1"})
    for hold in holds:
        hold.__exit__(None, None, None)
    assert inbox.held == 0
