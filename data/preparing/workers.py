"""Work on many files at once: on a cluster, or in a thread and in processes that end with the one that started them."""

import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from traceback import format_exc
from typing import Generic, TypeVar, cast

from core.errors import UserError
from core.machine import keep_freed_memory, num_cores

IN_NO_KEY = "Where parts are prepared changes none of them."

BYTES_PER_PROCESS = 16 * 2**20
"""A process takes as long to start as another one needs for so many bytes."""
Result = TypeVar("Result")
_Answer = tuple[Result | None, Exception | None]
"""What has become of one file: a result, or what the work has raised."""


def map_files(
    work: Callable[[Path], Result],
    files: Sequence[Path],
    *,
    in_thread: bool = False,
    scheduler: str | None = None,
    shared: Sequence[Path] = (),
) -> Generator[Result]:
    """Map over files, on the workers of a Dask scheduler or on all cores of this machine; results in any order.

    Args:
        work: a function of a module that can be imported, or a `partial` of one.
        files: what it takes one by one.
        in_thread: let a thread, which starts at once, stand for one of the processes: for work that is mostly done
            outside of Python, and says `keep_going` now and then.
        scheduler: address of the scheduler, if any.
        shared: the folders that `work` writes to.

    Raises:
        UserError: the system has killed a process, or worker after worker, which it does where memory runs out; or the
            cluster cannot be reached, or is not fit for the work.

    """
    if scheduler is None:
        return _map_here(work, files, in_thread=in_thread)
    from data.preparing.cluster import map_on_cluster

    return map_on_cluster(work, files, scheduler, shared)


def keep_going() -> None:
    """Raise where this runs in a thread for whose work nobody waits any more."""
    if getattr(threading.current_thread(), "is_halted", False):
        raise _HaltedError


class _HaltedError(Exception):
    """Ends the work of a thread."""


def _map_here(work: Callable[[Path], Result], files: Sequence[Path], *, in_thread: bool) -> Generator[Result]:
    """Map on all cores: this process works too, beside a thread and as many processes as are worth their start.

    The largest files come first, so that all cores end at about the same time.
    """
    sizes = {file: file.stat().st_size for file in files}
    keep_freed_memory()
    num_worth = max(sum(sizes.values()) // BYTES_PER_PROCESS, 2 if in_thread else 1)
    num_others = max(0, min(num_cores(), len(files), num_worth) - 1)
    kinds = [_Thread if in_thread and number == 0 else _Process for number in range(num_others)]
    waiting = deque(sorted(files, key=sizes.__getitem__, reverse=True))
    with ExitStack() as stack:
        colleagues: list[_Colleague[Result]] = []
        for kind in kinds:
            colleagues.append(kind(work))
            stack.callback(colleagues[-1].end)
        while waiting or any(colleague.num_files for colleague in colleagues):
            # While this thread works on a file, none of them may run out of files, unless these come to an end.
            for colleague in colleagues:
                while waiting and colleague.num_files < (2 if len(waiting) > len(colleagues) else 1):
                    colleague.give(waiting.popleft())
            if waiting:
                yield work(waiting.popleft())
            busy = [colleague for colleague in colleagues if colleague.num_files]
            ready = wait([colleague.pipe for colleague in busy], 0 if waiting else None) if busy else []
            yield from (colleague.take() for colleague in busy if colleague.pipe in ready)


class _Colleague(ABC, Generic[Result]):
    """Works on the files that it is given, behind a pipe of its own.

    Not a pool of the standard library, all of whose processes write to one pipe: where one is killed in the middle of a
    result, the reader waits for the rest for ever.
    """

    def __init__(self) -> None:
        self.pipe, self._theirs = Pipe()
        self.num_files = 0

    @abstractmethod
    def end(self) -> None:
        """Leave unfinished what is unfinished."""

    def give(self, file: Path) -> None:
        with suppress(BrokenPipeError):
            self.pipe.send(file)
        self.num_files += 1

    def take(self) -> Result:
        """Wait for a result, or raise what the work has raised."""
        result, error = self._receive()
        self.num_files -= 1
        if error is not None:
            raise error
        return cast(Result, result)

    def _receive(self) -> _Answer[Result]:
        return cast(_Answer[Result], self.pipe.recv())


class _Process(_Colleague[Result]):
    """A process in a session of its own, where Ctrl-C does not reach it: the one that has started it ends it.

    Not one of `multiprocessing`, which would begin by importing the main module anew, whatever that does, and start one
    more process to look after what is shared.
    """

    def __init__(self, work: Callable[[Path], Result]) -> None:
        super().__init__()
        descriptor = self._theirs.fileno()
        start = f"import sys; sys.path[:] = {sys.path}; from data.preparing.workers import serve; serve({descriptor})"
        # All other cores have processes of their own; and NumPy's library for matrices starts a thread for each core,
        # which looks for work for 0.1 s and finds none.
        environment = {_NUM_THREADS: "1", **os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.PIPE,  # closed by the system when this process ends, however it does
            pass_fds=[descriptor],
            env=environment,
            start_new_session=True,
        )
        self._theirs.close()
        with suppress(BrokenPipeError):
            self.pipe.send(work)

    def _receive(self) -> _Answer[Result]:
        """Wait for an answer.

        Raises:
            UserError: the process was killed.
            RuntimeError: it has ended otherwise.

        """
        try:
            return super()._receive()
        except (EOFError, ConnectionResetError):
            status = self._process.wait()
        if status == -signal.SIGKILL:
            raise UserError(
                "the system has ended a process that was decoding images, most likely for lack of memory: "
                "close other programs, or lower data.size",
                exit_code=1,
            )
        raise RuntimeError(f"a process that was decoding images has ended with status {status}")

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self.pipe.close()


class _Thread(_Colleague[Result]):
    def __init__(self, work: Callable[[Path], Result]) -> None:
        super().__init__()
        self._thread = threading.Thread(target=_work_for, args=(self._theirs, work), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._thread.is_halted = True  # type: ignore[attr-defined]
        self.pipe.close()
        self._thread.join()


_NUM_THREADS = "OMP_NUM_THREADS"
"""Environment variable: of OpenMP, OpenBLAS, MKL and Arrow."""


def serve(descriptor: int) -> None:
    """Work for the process that has started this one for it, as long as that lives.

    Args:
        descriptor: of this end of the pipe, through which first the work comes and then file after file.

    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    pipe = Connection(descriptor)
    _work_for(pipe, pipe.recv())


def _work_for(colleague: Connection, work: Callable[[Path], Result]) -> None:
    """Work on what comes through a pipe until its other end is closed."""
    answer: _Answer[Result]
    with colleague, suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            file = colleague.recv()
            try:
                answer = work(file), None
            except Exception as error:
                error.add_note(format_exc())
                answer = None, error
            colleague.send(answer)


def _end_with_parent() -> None:
    """Being killed leaves the parent no time to say so, but closes its end of this process's standard input."""
    os.read(0, 1)
    os._exit(1)
