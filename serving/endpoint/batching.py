"""Queue between requests and the model: all images that wait when the model is free are predicted as a batch.

A lone request does not wait: the thread that decodes an image also predicts it, unless enough threads are predicting,
which then take the image. If predictions need the cores that decode, all arrived images are decoded first, so that they
form a batch. A batch does not wait for an image that is slow to decode.

Separate threads of lower priority decode large images, so that large images do not delay small ones.
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
"""Called after each batch with the number of images, and the seconds that each decoded image waited."""
Gone = Callable[[], Awaitable[object]]
"""Returns when the client has disconnected."""

NICENESS = 10
"""Niceness of the threads that decode large images."""
WATCH_AFTER_SECONDS = 0.1
"""Disconnects are watched only after this time, because most answers come sooner."""


class OverloadedError(Exception):
    """More images wait than can be answered in time."""


class GoneError(Exception):
    """The client has disconnected before the answer."""


@dataclass(frozen=True)
class Limits:
    """Limits of a `Batcher`."""

    max_batch: int
    """maximum batch size"""
    threads: int
    """number of small images that are decoded at the same time, and also of large images"""
    streams: int
    """number of batches that are predicted at the same time"""
    patience_seconds: float
    """maximum wait of a batch for the next decoded image; 0: no wait"""
    max_queue: int
    """maximum number of images that are decoded, predicted or waiting; further requests are refused"""
    deadline_seconds: float
    """time limit from a request's arrival in the queue to its answer"""


@dataclass(slots=True, eq=False)
class _Waiting:
    """Image in the queue."""

    image: bytes | Pixels
    future: "asyncio.Future[Answers]"
    pixels: Pixels | None = None
    decoded_at: float = 0.0


class Batcher:
    """Decodes and predicts images outside the event loop, in batches of up to `Limits.max_batch`.

    Supports one event loop: a thread sends all its answers to the loop of its first request.
    """

    def __init__(
        self,
        decode_small: Callable[[bytes], Pixels | None],
        decode: Callable[[bytes], Pixels],
        predict: Callable[[Pixels], Answers],
        limits: Limits,
        observe: Observe,
    ) -> None:
        """Take thread-safe functions that decode the bytes of an image, and predict pixels [N, crop, crop, 3].

        `decode_small` returns None for an image that may be slow. Then `decode` decodes the image. The thread that
        predicts calls `observe`.
        """
        self._decode_small, self._decode = decode_small, decode
        self._predict, self._observe = predict, observe
        self._limits = limits
        # With batches, one more thread, so that `limits.threads` decode while one thread predicts.
        num_threads = limits.threads + (limits.max_batch > 1)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="convoy-predict")
        self._large = ThreadPoolExecutor(limits.threads, "convoy-large", initializer=_step_back)
        self._in_flight = 0
        self._progress = threading.Condition()
        self._num_undecoded = self._num_predicting = 0
        self._decoded: deque[_Waiting] = deque()
        self._busy_since: dict[int, float] = {}
        """start time of each thread's current decoding or prediction, by thread identifier"""

    @property
    def is_stalled(self) -> bool:
        """Whether decoding or predicting a small image takes longer than the deadline, so that others wait in vain."""
        began = min(list(self._busy_since.values()), default=math.inf)
        return time.monotonic() - began > self._limits.deadline_seconds

    @property
    def in_flight(self) -> int:
        """Number of images that are decoded, predicted or waiting."""
        return self._in_flight

    async def predict(self, image: bytes, gone: Gone | None = None) -> Answers:
        """Predict the bytes of one image file. Returns the probabilities [num_classes].

        Raises:
            DecodeError: the bytes are no usable image.
            OverloadedError: too many images wait, or the deadline has passed.
            GoneError: `gone` returned before the answer.

        """
        (answer,) = await self.predict_all([image], gone)
        if isinstance(answer, DecodeError):
            raise answer
        return answer

    async def predict_all(
        self, images: Sequence[bytes | Pixels], gone: Gone | None = None
    ) -> list[Answers | DecodeError]:
        """Predict several images, which are accepted together or not at all. Unusable images get their error as answer.

        Each image is the bytes of a file, or pixels [crop, crop, 3], which are not decoded.

        Raises:
            OverloadedError: too many images wait, or the deadline has passed.
            GoneError: `gone` returned before the answer.

        """
        # An empty queue accepts a request of any size.
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
                # Threads skip cancelled images. Free the memory now.
                if not each.future.cancel() and not each.future.cancelled():
                    each.future.exception()  # marks the exception as retrieved
                each.image = b""

    def _work(self, each: _Waiting, loop: asyncio.AbstractEventLoop) -> None:
        """Decode an image, unless it is large, and predict, unless enough threads are predicting."""
        try:
            # Skip images whose client has disconnected or whose deadline has passed.
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
                return  # a thread that predicts will take this image
            self._num_predicting += 1
        while batch := self._take():
            self._run(batch, loop)

    def _decode_large(self, each: _Waiting, loop: asyncio.AbstractEventLoop) -> None:
        """Decode an image. Other threads predict it, because this thread has a lower priority."""
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
        """Take the next batch, in order, without abandoned images. After an empty batch, the thread stops."""
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
        """Wait for the decoding of arrived images, while it makes progress and the batch has room."""
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
    """Lower the priority of this thread. On other systems than Linux, this would affect the whole process."""
    if sys.platform == "linux":
        os.nice(NICENESS)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    # A closed loop means that the process is ending, and nobody waits.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


async def _answer_of(each: _Waiting) -> Answers | DecodeError:
    try:
        return await each.future
    except DecodeError as error:
        return error


@contextlib.contextmanager
def _watched(gone: Gone | None, waiting: Sequence[_Waiting], loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Abandon the images when the client disconnects. The watch starts late, because most answers come sooner."""
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
