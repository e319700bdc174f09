"""The queue between requests and the model: whatever waits when the model is free is predicted together.

A lone request waits for nobody: who decodes an image predicts it too, if enough are not predicting already; otherwise
they take it. Where predicting takes the cores that decode, all that has arrived is decoded first, so that it is
predicted together; but a batch does not wait for an image that takes long to decode.

Large images are decoded by threads of their own, of a lower priority: they do not hold up the small ones.
"""

import asyncio
import contextlib
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.images.decode import DecodeError, Pixels

Answers = npt.NDArray[np.float32]
"""probabilities, [num_classes] or [N, num_classes]"""
Observe = Callable[[int, Sequence[float]], None]
"""Told of each run of the model: the number of images, and the seconds that each of them waited, decoded."""
Gone = Callable[[], Awaitable[object]]
"""Returns when the client has gone."""

NICENESS = 10
"""Of the threads that decode large images."""
WATCH_AFTER_SECONDS = 0.1
"""Who is answered sooner has no time to go."""


class OverloadedError(Exception):
    """More waits than can be answered in time."""


class GoneError(Exception):
    """The client has gone: there is nobody to answer."""


@dataclass(frozen=True)
class Limits:
    """How much a `Batcher` takes on."""

    max_batch: int
    """images predicted together"""
    threads: int
    """small images decoded at the same time, and as many large ones"""
    streams: int
    """batches predicted at the same time"""
    patience_seconds: float
    """that a batch with room waits while not one more image is decoded; 0: it does not wait"""
    max_queue: int
    """images that are decoded, predicted or wait; with more of them requests are refused"""
    deadline_seconds: float
    """from a request's arrival in the queue to its answer"""


@dataclass(slots=True, eq=False)
class _Waiting:
    """One image on its way."""

    image: bytes | Pixels
    future: "asyncio.Future[Answers]"
    pixels: Pixels | None = None
    decoded_at: float = 0.0


class Batcher:
    """Decodes and predicts images off the event loop, several together where `Limits.max_batch` allows it.

    For one event loop: a thread answers all that it takes on the loop of the request that it began with.
    """

    def __init__(
        self,
        decode_small: Callable[[bytes], Pixels | None],
        decode: Callable[[bytes], Pixels],
        predict: Callable[[Pixels], Answers],
        limits: Limits,
        observe: Observe,
    ) -> None:
        """Take what decodes the bytes of an image, and what predicts pixels [N, crop, crop, 3]; all from any thread.

        `decode_small` gives None for an image that may take long, which `decode` takes.

        `observe` is called from the thread that predicts.
        """
        self._decode_small, self._decode = decode_small, decode
        self._predict, self._observe = predict, observe
        self._limits = limits
        # One more where they predict together: while one of them does that, the others must not fail to decode.
        num_threads = limits.threads + (limits.max_batch > 1)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="convoy-predict")
        self._large = ThreadPoolExecutor(limits.threads, "convoy-large", initializer=_step_back)
        self._in_flight = 0
        self._progress = threading.Condition()
        self._num_undecoded = self._num_predicting = 0
        self._decoded: deque[_Waiting] = deque()
        self._busy_since: dict[int, float] = {}
        """when each thread of the pool began to decode or predict, by its identifier"""

    @property
    def is_stalled(self) -> bool:
        """Whether a small image is decoded or predicted for longer than the deadline: others may wait in vain."""
        began = min(list(self._busy_since.values()), default=math.inf)
        return time.monotonic() - began > self._limits.deadline_seconds

    @property
    def in_flight(self) -> int:
        """Number of images that are decoded, predicted or wait."""
        return self._in_flight

    async def predict(self, image: bytes, gone: Gone | None = None) -> Answers:
        """Predict the bytes of one image file; gives the probabilities [num_classes].

        Raises:
            DecodeError: these bytes are no usable image.
            OverloadedError: too much waits, or the deadline has passed.
            GoneError: `gone` has returned before there was an answer.

        """
        (answer,) = await self.predict_all([image], gone)
        if isinstance(answer, DecodeError):
            raise answer
        return answer

    async def predict_all(
        self, images: Sequence[bytes | Pixels], gone: Gone | None = None
    ) -> list[Answers | DecodeError]:
        """Predict several images, which are taken on together or not at all; for one that is no image, its error.

        Each is the bytes of a file, or pixels [crop, crop, 3], which are not decoded.

        Raises:
            OverloadedError: too much waits, or the deadline has passed.
            GoneError: `gone` has returned before there was an answer.

        """
        # Whatever its size, a request that finds nothing before it is taken on.
        if self._in_flight and self._in_flight + len(images) > self._limits.max_queue:
            raise OverloadedError("too many images are waiting: try again in a moment")
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(image, loop.create_future()) for image in images]
        self._in_flight += len(waiting)
        try:
            async with asyncio.timeout(self._limits.deadline_seconds):
                with self._progress:
                    self._num_undecoded += len(waiting)
                for each in waiting:
                    self._pool.submit(self._work, each, loop)
                with _watched(gone, waiting, loop):
                    return [await _answer_of(each) for each in waiting]
        except TimeoutError:
            raise OverloadedError("the answer would have come too late: try again in a moment") from None
        finally:
            self._in_flight -= len(waiting)
            for each in waiting:
                # A thread that comes to it later leaves it, and until then it holds no memory.
                if not each.future.cancel() and not each.future.cancelled():
                    each.future.exception()  # told, if only of the first
                each.image = b""

    def _work(self, each: _Waiting, loop: asyncio.AbstractEventLoop) -> None:
        """Decode an image, unless it is large, and predict, unless enough others do."""
        try:
            # Nobody waits any more for an image whose client has gone or whose deadline has passed.
            if each.pixels is None and not each.future.done():
                image = each.image
                with self._busy():
                    each.pixels = self._decode_small(image) if isinstance(image, bytes) else image
                if each.pixels is None:
                    self._large.submit(self._decode_large, each, loop)
        except Exception as error:
            _tell(loop, _fail, [each], error)
        with self._progress:
            self._num_undecoded -= 1
            if each.pixels is not None:
                each.decoded_at = time.perf_counter()
                self._decoded.append(each)
            self._progress.notify_all()
            if self._num_predicting == self._limits.streams:
                return  # whoever predicts comes back for this image
            self._num_predicting += 1
        while batch := self._take():
            self._run(batch, loop)

    def _decode_large(self, each: _Waiting, loop: asyncio.AbstractEventLoop) -> None:
        """Decode an image; others predict it, as this thread has a lower priority."""
        image = each.image
        if each.future.done() or not isinstance(image, bytes):
            return
        try:
            each.pixels = self._decode(image)
        except Exception as error:
            _tell(loop, _fail, [each], error)
            return
        with self._progress:
            self._num_undecoded += 1
        self._pool.submit(self._work, each, loop)

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        thread = threading.get_ident()
        self._busy_since[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._busy_since[thread]

    def _take(self) -> list[_Waiting]:
        """Take what waits in its order, and leave what nobody waits for; with nothing left, the thread has done."""
        batch: list[_Waiting] = []
        with self._progress:
            self._await_others()
            while self._decoded and len(batch) < self._limits.max_batch:
                each = self._decoded.popleft()
                if not each.future.done():
                    batch.append(each)
            self._num_predicting -= not batch
        return batch

    def _await_others(self) -> None:
        """Give way to the decoding of what has arrived, as long as it goes on and there is room in the batch."""
        while self._decoded and self._num_undecoded and len(self._decoded) < self._limits.max_batch:
            if not self._progress.wait(self._limits.patience_seconds):
                break

    def _run(self, batch: list[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        started = time.perf_counter()
        try:
            with self._busy():
                answers = self._predict(np.stack([each.pixels for each in batch if each.pixels is not None]))
            self._observe(len(batch), [started - each.decoded_at for each in batch])
        except Exception as error:
            _tell(loop, _fail, batch, error)
        else:
            _tell(loop, _settle, batch, answers)


def _step_back() -> None:
    """Lower the priority of this thread; elsewhere than on Linux that would be the whole process."""
    if sys.platform == "linux":
        os.nice(NICENESS)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    # A closed loop means that the process is ending: nobody waits any more.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


async def _answer_of(each: _Waiting) -> Answers | DecodeError:
    try:
        return await each.future
    except DecodeError as error:
        return error


@contextlib.contextmanager
def _watched(gone: Gone | None, waiting: Sequence[_Waiting], loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Give up what nobody waits for any more, from a moment on: most answers come before that."""
    if gone is None:
        yield
        return
    watches: list[asyncio.Task[None]] = []
    later = loop.call_later(WATCH_AFTER_SECONDS, lambda: watches.append(loop.create_task(_abandon(gone, waiting))))
    try:
        yield
    finally:
        later.cancel()
        for watch in watches:
            watch.cancel()


async def _abandon(gone: Gone, waiting: Sequence[_Waiting]) -> None:
    await gone()
    _fail(waiting, GoneError("the connection was closed before there was an answer"))


def _settle(batch: Sequence[_Waiting], answers: Answers) -> None:
    for each, answer in zip(batch, answers, strict=True):
        if not each.future.done():
            each.future.set_result(answer)


def _fail(waiting: Sequence[_Waiting], error: Exception) -> None:
    for each in waiting:
        if not each.future.done():
            each.future.set_exception(error)
