import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from test_serving_classifier import make_model, picture

from data.images.decode import DecodeError
from serving.endpoint.batching import Batcher, GoneError, Limits, OverloadedError
from serving.endpoint.classifier import Classifier

COLORS = [(5 * number, 100, 250 - 5 * number) for number in range(40)]


class Model:
    """Decodes a byte to a pixel, and answers with it; a batch is held until `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.batches: list[list[int]] = []
        self.waits: list[float] = []

    def decode_small(self, image: bytes) -> np.ndarray | None:
        return self.decode(image)

    def decode(self, image: bytes) -> np.ndarray:
        if image == b"":
            raise DecodeError("broken")
        return np.frombuffer(image, np.uint8)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        assert self.go.wait(10)
        self.batches.append(pixels[:, 0].tolist())
        if 99 in self.batches[-1]:
            raise RuntimeError("the model failed")
        return pixels.astype(np.float32)

    def observe(self, size: int, waits: Any) -> None:
        assert size == len(waits) == len(self.batches[-1])
        self.waits += waits


def batcher(model: Model, **limits: float) -> Batcher:
    options: dict[str, Any] = {"max_batch": 4, "threads": 1, "streams": 1, "patience_seconds": 0.0} | limits
    options = {"max_queue": 16, "deadline_seconds": 5.0} | options
    return Batcher(model.decode_small, model.decode, model.predict, Limits(**options), model.observe)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def hold_first(queue: Batcher, model: Model) -> "asyncio.Task[Any]":
    """Let one request hold the model, so that those after it must wait."""
    model.go.clear()
    first = asyncio.create_task(queue.predict(b"\0"))
    await until(lambda: bool(queue._num_predicting))
    return first


def run(function: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(function())  # type: ignore[arg-type]


def test_what_waits_is_predicted_together_in_its_order():
    model = Model()
    queue = batcher(model)

    async def ask() -> list[Any]:
        first = await hold_first(queue, model)
        others = [asyncio.create_task(queue.predict(bytes([number]))) for number in range(1, 8)]
        await until(lambda: len(queue._decoded) == 7)
        model.go.set()
        return await asyncio.gather(first, *others)

    assert [int(answer[0]) for answer in run(ask)] == list(range(8))
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert len(model.waits) == 8
    assert min(model.waits) >= 0


def test_without_a_gain_each_image_is_predicted_alone():
    model = Model()
    queue = batcher(model, max_batch=1, threads=2, streams=2)
    answers = run(lambda: queue.predict_all([bytes([number]) for number in range(6)]))
    assert [int(answer[0]) for answer in answers] == list(range(6))
    assert sorted(model.batches) == [[number] for number in range(6)]


def test_as_many_batches_are_predicted_at_the_same_time_as_there_are_streams():
    model = Model()
    model.go.clear()
    queue = batcher(model, max_batch=1, threads=4, streams=2)

    async def ask() -> None:
        task = asyncio.create_task(queue.predict_all([bytes([number]) for number in range(6)]))
        await until(lambda: len(queue._decoded) == 4)
        assert (queue._num_predicting, queue._num_undecoded) == (2, 0)
        model.go.set()
        await task
        await until(lambda: not queue._num_predicting)

    run(ask)


def test_what_has_arrived_is_decoded_first_so_that_it_is_predicted_together():
    model = Model()
    queue = batcher(model, threads=2, max_batch=8, patience_seconds=5.0)
    run(lambda: queue.predict_all([bytes([number]) for number in range(8)]))
    assert sorted(model.batches[0]) == list(range(8))


@pytest.mark.parametrize("broken", [b"", b"\1"])
def test_a_batch_does_not_wait_for_an_image_that_takes_long(broken):
    model, decode = Model(), Model.decode
    slow = threading.Event()

    def decode_slowly(self: Model, image: bytes) -> np.ndarray:
        assert image != broken or slow.wait(10)
        return decode(self, image)

    model.decode = decode_slowly.__get__(model)  # type: ignore[method-assign]
    queue = batcher(model, threads=2, patience_seconds=0.005)

    async def ask() -> Any:
        stuck = asyncio.create_task(queue.predict_all([broken]))
        await until(lambda: queue._num_undecoded == 1)
        answer = await queue.predict(b"\2")
        assert not stuck.done()
        slow.set()
        await stuck
        return answer

    assert int(run(ask)[0]) == 2
    assert model.batches[0] == [2]


def test_a_broken_image_fails_none_of_the_others():
    model = Model()
    one, two, three = run(lambda: batcher(model).predict_all([b"\1", b"", b"\3"]))
    assert (int(one[0]), int(three[0])) == (1, 3)
    assert isinstance(two, DecodeError)
    with pytest.raises(DecodeError, match="broken"):
        run(lambda: batcher(model).predict(b""))


def test_a_model_that_fails_fails_its_batch_and_goes_on():
    queue = batcher(Model())

    async def ask() -> Any:
        with pytest.raises(RuntimeError, match="the model failed"):
            await queue.predict_all([b"c", b"c", b"\1"])  # c is 99
        return await queue.predict(b"\2")

    assert int(run(ask)[0]) == 2


def test_beyond_its_bound_the_queue_refuses_at_once():
    model = Model()
    queue = batcher(model, max_queue=3)

    async def ask() -> float:
        first = await hold_first(queue, model)
        others = [asyncio.create_task(queue.predict(b"\1")) for _ in range(2)]
        await until(lambda: len(queue._decoded) == 2)
        started = time.perf_counter()
        with pytest.raises(OverloadedError, match="too many"):
            await queue.predict(b"\2")
        seconds = time.perf_counter() - started
        model.go.set()
        await asyncio.gather(first, *others)
        return seconds

    assert run(ask) < 0.05
    assert model.batches == [[0], [1, 1]]
    # A request larger than the queue has its turn when nothing waits.
    assert len(run(lambda: queue.predict_all([b"\3"] * 5))) == 5


def test_what_waits_too_long_is_dropped_and_not_predicted():
    model = Model()
    queue = batcher(model, deadline_seconds=0.05)

    async def ask() -> None:
        first = await hold_first(queue, model)
        with pytest.raises(OverloadedError, match="too late"):
            await queue.predict(b"\1")
        with pytest.raises(OverloadedError, match="too late"):
            await first
        model.go.set()
        await until(lambda: not queue._num_predicting)
        await queue.predict(b"\2")

    run(ask)
    assert model.batches == [[0], [2]]
    assert queue._in_flight == 0


@pytest.mark.parametrize("leaves", ["cancelled", "closed"])
def test_a_request_whose_client_has_gone_is_not_predicted(leaves):
    model = Model()
    queue = batcher(model)

    async def ask() -> None:
        first = await hold_first(queue, model)
        closed = asyncio.Event()
        task = asyncio.create_task(queue.predict_all([b"\1", b"\2"], closed.wait))
        await until(lambda: len(queue._decoded) == 2)
        closed.set() if leaves == "closed" else task.cancel()
        with pytest.raises(GoneError if leaves == "closed" else asyncio.CancelledError):
            await task
        model.go.set()
        await first
        await queue.predict(b"\3")

    run(ask)
    assert model.batches == [[0], [3]]
    assert queue._in_flight == 0


@pytest.mark.parametrize("max_batch", [1, 8])
def test_many_at_once_get_the_answers_that_each_would_get_alone(tmp_path, max_batch):
    classifier = Classifier(make_model(tmp_path))
    files = [picture(color) for color in COLORS]
    sizes: list[int] = []
    limits = Limits(max_batch, threads=4, streams=2, patience_seconds=0.005, max_queue=100, deadline_seconds=10)
    decoders = classifier.decode_small, classifier.decode
    queue = Batcher(*decoders, classifier.predict, limits, lambda size, waits: sizes.append(size))

    async def ask() -> list[Any]:
        return await asyncio.gather(*(queue.predict(file) for file in files))

    for file, answer in zip(files, run(ask), strict=True):
        (alone,) = classifier.predict(classifier.decode(file)[None])
        np.testing.assert_allclose(answer, alone, atol=1e-5)
    assert sum(sizes) == len(files)
    assert max(sizes) <= max_batch


def test_memory_of_what_was_given_up_is_let_go():
    model = Model()
    queue = batcher(model, deadline_seconds=0.05)

    async def ask() -> None:
        first = await hold_first(queue, model)
        submitted: list[Any] = []
        submit = queue._pool.submit
        queue._pool.submit = lambda work, each, loop: (submitted.append(each), submit(work, each, loop))  # type: ignore
        with pytest.raises(OverloadedError):
            await queue.predict(b"\1" * 1000)
        assert submitted[0].image == b""
        model.go.set()
        await asyncio.gather(first, return_exceptions=True)

    run(ask)
