import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from test_serving_batching import Model, batcher, run, until

from serving.endpoint.batching import GoneError, OverloadedError


@pytest.mark.parametrize("leaves", ["cancelled", "closed", "late"])
def test_what_nobody_waits_for_any_more_is_not_decoded(leaves):
    model, slow, decoded = Model(), threading.Event(), []

    def decode(image: bytes) -> np.ndarray:
        decoded.append(image)
        assert image != b"\0" or slow.wait(10)
        return np.frombuffer(image, np.uint8)

    model.decode = decode  # type: ignore[method-assign]
    queue = batcher(model, max_batch=1, deadline_seconds=0.2 if leaves == "late" else 5.0)

    async def ask() -> None:
        first = asyncio.create_task(queue.predict(b"\0"))
        await until(lambda: decoded == [b"\0"])
        closed = asyncio.Event()
        waits = asyncio.create_task(queue.predict_all([b"\1", b"\2"], closed.wait))
        await until(lambda: queue._num_undecoded == 3)
        if leaves != "late":
            closed.set() if leaves == "closed" else waits.cancel()
        with pytest.raises((GoneError, OverloadedError, asyncio.CancelledError)):
            await waits
        slow.set()
        await asyncio.gather(first, return_exceptions=True)
        await until(lambda: not queue._num_undecoded)
        await queue.predict(b"\3")

    run(ask)
    assert decoded == [b"\0", b"\3"]


@pytest.mark.parametrize("step", ["decode", "predict"])
def test_a_queue_is_stalled_while_an_image_takes_longer_than_the_deadline(step):
    model, slow = Model(), threading.Event()
    work = getattr(model, step)

    def take_long(argument: Any) -> np.ndarray:
        assert slow.wait(10)
        return work(argument)

    setattr(model, step, take_long)
    queue = batcher(model, deadline_seconds=0.05)

    async def ask() -> None:
        with pytest.raises(OverloadedError, match="too late"):
            await queue.predict(b"\1")
        await until(lambda: queue.is_stalled)
        slow.set()
        await until(lambda: not queue.is_stalled)
        await queue.predict(b"\2")

    assert not queue.is_stalled
    run(ask)
    assert not queue.is_stalled
