"""Maps a function over files, on a cluster or in processes that end with their parent."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from core.errors import UserError
from core.machine import num_cores

IN_NO_KEY = "Where parts are prepared changes none of them."

BYTES_PER_PROCESS = 16 * 2**20
"""Work of one process must be larger: starting a process takes as long as processing this many bytes."""
Result = TypeVar("Result")


def map_files(
    work: Callable[[Path], Result],
    files: Sequence[Path],
    *,
    scheduler: str | None = None,
    shared: Sequence[Path] = (),
) -> Generator[Result]:
    """Map over files, on the workers of a Dask scheduler or on all cores of this machine. Results come in any order.

    Args:
        work: a function of an importable module, or a `partial` of one.
        files: arguments of `work`.
        scheduler: address of the scheduler, if any.
        shared: folders to which `work` writes.

    Raises:
        UserError: the system has killed a process, or one worker after another, usually because memory ran out; or the
            cluster cannot be reached, or is unsuitable.

    """
    if scheduler is None:
        return _map_here(work, files)
    from data.preparing.cluster import map_on_cluster

    return map_on_cluster(work, files, scheduler, shared)


def _map_here(work: Callable[[Path], Result], files: Sequence[Path]) -> Generator[Result]:
    """Map in this process, and in as many others as are worth their start.

    The others take the largest files first, this process the smallest, so that all end at about the same time.
    """
    sizes = {file: file.stat().st_size for file in files}
    files = sorted(files, key=sizes.__getitem__, reverse=True)
    num_processes = min(num_cores(), len(files), sum(sizes.values()) // BYTES_PER_PROCESS)
    if num_processes < 2:
        yield from map(work, files)
        return
    _keep_freed_memory()
    theirs, ours = Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_processes - 1, get_context("spawn"), _end_with, (theirs,))
    finished: SimpleQueue[Future[Result]] = SimpleQueue()
    try:
        with _interrupts_blocked():
            waiting = [(pool.submit(work, file), file) for file in files]
        for future, _ in waiting:
            future.add_done_callback(finished.put)
        num_left = len(files)
        while num_left:
            if waiting and finished.empty():
                future, file = waiting.pop()
                if future.cancel():
                    yield work(file)
                    num_left -= 1
            elif not (future := finished.get()).cancelled():
                yield future.result()
                num_left -= 1
    except BrokenProcessPool:
        raise UserError(
            "the system has ended a process that was decoding images, most likely for lack of memory: "
            "close other programs, or lower data.size",
            exit_code=1,
        ) from None
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C in processes that start in the block, because this process ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(starter: Connection) -> None:
    """End this process at once when its parent closes the other end of a pipe, or dies."""

    def wait() -> None:
        starter.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks up to this size for the next image, which saves 4 % of preparing."""
    bytes(16 * 2**20)
