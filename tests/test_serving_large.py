"""Large images: bombs, or only large, they must not hold up the others."""

import asyncio
import os
import sys
import threading
from typing import Any

import numpy as np
import pytest
from listening import all_of, connect, listening
from test_serving_app import ANYONE
from test_serving_batching import Model, batcher, run, until
from test_serving_classifier import BLUE, make_model, picture

from data.images.decode import DecodeError
from serving.config import ServingConfig
from serving.endpoint.app import create_app
from serving.endpoint.batching import NICENESS, Limits, OverloadedError
from serving.endpoint.classifier import Classifier

LARGE = picture((10, 20, 240), side=1000)


def test_large_images_are_decoded_beside_the_others_and_predicted_with_them():
    model, go = Model(), threading.Event()
    niceness: list[int] = []

    def decode(image: bytes) -> np.ndarray:
        niceness.append(os.nice(0))
        assert go.wait(10)
        return Model.decode(model, image)

    model.decode_small = lambda image: None if image > b"\x0a" else Model.decode(model, image)  # type: ignore
    model.decode = decode  # type: ignore[method-assign]
    queue = batcher(model, max_batch=8, patience_seconds=5.0)

    async def ask() -> tuple[list[Any], list[Any]]:
        large = asyncio.create_task(queue.predict_all([b"\x0b", b"\x0c"]))
        await until(lambda: len(niceness) == 1)
        small = [await queue.predict(bytes([number])) for number in range(3)]
        go.set()
        return await large, small

    large, small = run(ask)
    assert [int(answer[0]) for answer in large + small] == [11, 12, 0, 1, 2]
    assert set(niceness) == {os.nice(0) + (NICENESS if sys.platform == "linux" else 0)}


def test_a_large_image_that_is_broken_or_given_up_is_not_predicted():
    model, go = Model(), threading.Event()
    model.decode_small = lambda image: None  # type: ignore[method-assign]
    model.decode = lambda image: go.wait(10) and Model.decode(model, image)  # type: ignore[method-assign]
    queue = batcher(model, deadline_seconds=0.05)

    async def ask() -> None:
        with pytest.raises(OverloadedError, match="too late"):
            await queue.predict_all([b"\1", b"\2"])
        go.set()
        with pytest.raises(DecodeError, match="broken"):
            await queue.predict(b"")
        await queue.predict(b"\3")

    run(ask)
    assert model.batches == [[3]]


def test_small_images_are_told_by_their_work_and_memory(tmp_path):
    classifier = Classifier(make_model(tmp_path, max_pixels=50_000_000))
    np.testing.assert_array_equal(classifier.decode_small(BLUE), classifier.decode(BLUE))
    assert classifier.decode_small(LARGE) is None
    with pytest.raises(DecodeError, match="not an image"):
        classifier.decode_small(b"junk")
    of_500 = picture((10, 20, 240), side=500)
    assert classifier.decode_small(of_500) is not None
    assert Classifier(make_model(tmp_path / "edge"), decoding_mb=4).decode_small(of_500) is None


def test_an_endpoint_that_reads_large_images_answers_small_ones(tmp_path, monkeypatch):
    classifier = Classifier(make_model(tmp_path, max_pixels=50_000_000))
    go = threading.Event()
    decode = classifier.decode
    monkeypatch.setattr(classifier, "decode", lambda image: go.wait(10) and decode(image))
    limits = Limits(max_batch=1, threads=1, streams=1, patience_seconds=0, max_queue=16, deadline_seconds=10)
    head = b"POST /classify HTTP/1.1\r\nConnection: close\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    with listening(create_app(lambda: classifier, ServingConfig(), limits=limits, tokens=ANYONE)) as port:
        large = [connect(port, head % len(LARGE) + LARGE) for _ in range(3)]
        for _ in range(3):
            assert all_of(connect(port, head % len(BLUE) + BLUE)).startswith(b"HTTP/1.1 200 ")
        go.set()
        assert all(all_of(connection).startswith(b"HTTP/1.1 200 ") for connection in large)
