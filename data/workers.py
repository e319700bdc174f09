"""Work on many files at once, in processes that end with the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
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


def map_files(work: Callable[[Path], Result], files: Sequence[Path]) -> Iterator[Result]:
    """Map over files in order; in as many processes as there are cores, where that is worth their start.

    An interruption ends the processes at once, and so does the death of this one.

    Raises:
        UserError: the system has ended a process, which it does where memory runs out.

    """
    num_bytes = sum(file.stat().st_size for file in files)
    num_processes = min(num_cores(), len(files), num_bytes // BYTES_PER_PROCESS)
    if num_processes < 2:
        yield from map(work, files)
        return
    context = multiprocessing.get_context("spawn")
    end_of_parent, held = context.Pipe(duplex=False)
    with end_of_parent, ProcessPoolExecutor(num_processes, context, _end_with_parent, (end_of_parent,)) as pool:
        try:
            yield from _submit(pool, work, files)
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


def _submit(pool: ProcessPoolExecutor, work: Callable[[Path], Result], files: Sequence[Path]) -> Iterator[Result]:
    """Start the processes with Ctrl-C blocked, which this process answers for all of them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.map(work, files)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_with_parent(end_of_parent: Connection) -> None:
    def wait() -> None:
        with suppress(EOFError, OSError):
            end_of_parent.recv()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
