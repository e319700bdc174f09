"""Work on many files at once: on a cluster, or in processes that end with the one that started them."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TypeVar

from core.errors import UserError
from core.machine import num_cores

IN_NO_KEY = "Where parts are prepared changes none of them."

BYTES_PER_PROCESS = 16 * 2**20
"""A process takes as long to start as another one needs for so many bytes."""
Result = TypeVar("Result")


def map_files(
    work: Callable[[Path], Result],
    files: Sequence[Path],
    *,
    scheduler: str | None = None,
    shared: Sequence[Path] = (),
) -> Generator[Result]:
    """Map over files, on the workers of a Dask scheduler or on all cores of this machine; results in any order.

    Args:
        work: a function of a module that can be imported, or a `partial` of one.
        files: what it takes one by one.
        scheduler: address of the scheduler, if any.
        shared: the folders that `work` writes to.

    Raises:
        UserError: the system has killed a process, or worker after worker, which it does where memory runs out; or the
            cluster cannot be reached, or is not fit for the work.

    """
    if scheduler is None:
        return _map_here(work, files)
    from data.preparing.cluster import map_on_cluster

    return map_on_cluster(work, files, scheduler, shared)


def _map_here(work: Callable[[Path], Result], files: Sequence[Path]) -> Generator[Result]:
    """Map in as many processes as are worth their start, or in this one.

    The largest files come first, so that all processes end at about the same time.
    """
    sizes = {file: file.stat().st_size for file in files}
    files = sorted(files, key=sizes.__getitem__, reverse=True)
    num_processes = min(num_cores(), len(files), sum(sizes.values()) // BYTES_PER_PROCESS)
    if num_processes < 2:
        yield from map(work, files)
        return
    theirs, ours = Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_processes, get_context("spawn"), _end_with, (theirs,))
    try:
        with _interrupts_blocked():
            waiting = [pool.submit(work, file) for file in files]
        yield from (done.result() for done in as_completed(waiting))
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
    """Let processes that start here inherit that Ctrl-C does not reach them: this process ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(starter: Connection) -> None:
    """End this process in the middle of its work when the process that started it closes its end of a pipe, or dies."""

    def wait() -> None:
        starter.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
