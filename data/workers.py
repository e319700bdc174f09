"""Work on many files at once: on a cluster, or in processes that end with the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from data.errors import UserError
from data.stage import num_cores

BYTES_PER_PROCESS = 16 * 2**20
"""A process takes as long to start as another one needs for so many bytes."""

Result = TypeVar("Result")


def map_files(
    work: Callable[[Path], Result], files: Sequence[Path], *, scheduler: str | None = None, shared: Sequence[Path] = ()
) -> Iterator[Result]:
    """Map over files, on the workers of a Dask scheduler or in processes of this machine; results in any order.

    Args:
        work: a function of a module, or a `partial` of one.
        files: what it takes one by one.
        scheduler: address of the scheduler, if any.
        shared: the folders that `work` writes to.

    Raises:
        UserError: the system has ended a process, or worker after worker, which it does where memory runs out; or the
            cluster cannot be reached, or is not fit for the work.

    """
    if scheduler is None:
        return _map_here(work, files)
    from data.cluster import map_on_cluster

    return map_on_cluster(work, files, scheduler, shared)


def _map_here(work: Callable[[Path], Result], files: Sequence[Path]) -> Iterator[Result]:
    """Map in as many processes as there are cores, where that is worth their start.

    The largest files come first, so that all cores end at about the same time; results come as they are made. An
    interruption ends the processes at once, and so does the death of this one.
    """
    sizes = {file: file.stat().st_size for file in files}
    num_processes = min(num_cores(), len(files), sum(sizes.values()) // BYTES_PER_PROCESS)
    files = sorted(files, key=sizes.__getitem__, reverse=True)
    if num_processes < 2:
        yield from map(work, files)
        return
    context = multiprocessing.get_context("spawn")
    end_of_parent, held = context.Pipe(duplex=False)
    with end_of_parent, ProcessPoolExecutor(num_processes, context, _end_with_parent, (end_of_parent,)) as pool:
        try:
            for future in as_completed(_submit(pool, work, files)):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "the system has ended a process that was decoding images, most likely for lack of memory: "
                "close other programs, or lower data.size",
                exit_code=1,
            ) from None
        except BaseException:
            held.close()
            raise
    held.close()


def _submit(pool: ProcessPoolExecutor, work: Callable[[Path], Result], files: Sequence[Path]) -> list[Future[Result]]:
    """Start the processes with Ctrl-C blocked, which this process answers for all of them.

    Not `pool.map`, which cancels what is pending when it is interrupted: where the processes end at the same moment,
    Python 3.11 prints a traceback of its own.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [pool.submit(work, file) for file in files]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_with_parent(end_of_parent: Connection) -> None:
    def wait() -> None:
        with suppress(EOFError, OSError):
            end_of_parent.recv()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
