"""Maps a function over files on a Dask cluster. No other module imports Dask.

Only paths and parameters travel, never images: the workers read and write a shared file system. The files of a dead
worker are processed again by another worker. Files are complete or absent, and equal work writes equal bytes, so a
worker that was alive after all does no harm.
"""

import asyncio
import logging
import os
import secrets
import ssl
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from distributed import Client, Future, KilledWorker, Security
from distributed.comm import connect
from distributed.versions import VersionMismatchWarning

from core import code
from core.errors import UserError
from data.images.decode import DECODERS

IN_NO_KEY = "Where parts are prepared changes none of them."

AHEAD = 2048
"""Maximum number of files at the scheduler: four for each of 500 cores. The limit saves memory in the client."""

CONNECT_SECONDS = 8
"""Time limit for the scheduler's answer."""

PATIENCE_SECONDS = 30
"""Maximum time without any worker, for example while machines are replaced."""

PACKAGES = ("python", "dask", "distributed", *DECODERS)
"""Packages that need the same version everywhere: for the transfer of work, and for decoding."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Task(Generic[Result]):
    """Work on a file, for suitable workers."""

    work: Callable[[Path], Result]
    marks: tuple[Path, ...]
    """files that exist while the client waits for results; a worker without these files has other folders"""
    code: str
    """digest of the client's code"""

    def __call__(self, file: Path) -> Result:
        """Work on one file, and check the worker again, because it may have joined late.

        Raises:
            UserError: the worker has other code or other folders.

        """
        if misfit := self.misfit(file):
            raise UserError(f"a worker on {os.uname().nodename} {misfit}", exit_code=1)
        return self.work(file)

    def misfit(self, file: Path) -> str | None:
        """Return the reason why this process cannot do the work, or None."""
        if code_digest() != self.code:
            return "runs another version of Convoy: restart it from the same image or checkout as this one"
        for path in (file, *self.marks):
            if not path.exists():
                return (
                    f"does not see {path.parent} as it is here: data/raw, data/prepared and outputs must be on a file "
                    "system that all machines share, under the same path"
                )
        for path in self.marks:
            if not os.access(path.parent, os.W_OK):
                return f"cannot write to {path.parent}: start it as a user who can"
        return None


@cache
def code_digest() -> str:
    """Digest of the code of parts at the first call, because a process keeps the code that it has imported."""
    return code.digest("data.preparing.shard")


def map_on_cluster(
    work: Callable[[Path], Result], files: Sequence[Path], scheduler: str, shared: Sequence[Path]
) -> Generator[Result]:
    """Map over files in order on the workers of a scheduler. An interruption cancels work that has not begun.

    Args:
        work: function of a module, or a `partial` of one, because Dask pickles it.
        files: absolute paths.
        scheduler: address, such as `tcp://10.0.0.1:8786`.
        shared: folders to which `work` writes, absolute paths.

    Raises:
        UserError: the scheduler does not answer, a worker is unsuitable, or a file kills one worker after another.

    """
    with _quiet(), _connected(scheduler) as client, _marked(shared) as marks:
        task = Task(work, marks, code_digest())
        _check_versions(client)
        _check_workers(client, task, files[0])
        waiting = iter(files)
        pending: deque[tuple[Path, Future]] = deque()
        try:
            while True:
                if len(pending) <= AHEAD // 2:
                    batch = list(islice(waiting, AHEAD - len(pending)))
                    pending += zip(batch, client.map(task, batch, pure=False), strict=True)
                if not pending:
                    return
                yield _result(client, *pending[0])
                pending.popleft()
        finally:
            client.cancel([future for _, future in pending])


def _result(client: Client, file: Path, future: Future) -> Any:
    address = client.scheduler.address
    while True:
        try:
            return future.result(timeout=PATIENCE_SECONDS)
        except TimeoutError:
            if future.status == "error":
                raise
            _check_alive(client)
        except KilledWorker as error:
            raise UserError(
                f"{file.name} has ended {error.allowed_failures + 1} workers one after another, most likely for lack "
                "of memory: give them more with `dask worker --memory-limit`, or lower data.max_pixels",
                exit_code=1,
            ) from None
        except CancelledError:
            raise UserError(
                f"the Dask scheduler at {address} has gone: start it and run the same command again; what was finished "
                "is kept",
                exit_code=1,
            ) from None


def _check_alive(client: Client) -> None:
    if not client.nthreads():
        raise UserError(
            f"no worker is left at {client.scheduler.address}: start some and run the same command again; what was "
            "finished is kept",
            exit_code=1,
        )


@contextmanager
def _connected(scheduler: str) -> Iterator[Client]:
    try:
        asyncio.run(_knock(scheduler))
        client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError):
        raise UserError(
            f"data.scheduler: no Dask scheduler answers at {scheduler}: start one there with `dask scheduler`, or set "
            "data.scheduler=null to use this machine alone"
        ) from None
    except (TypeError, ssl.SSLError) as error:
        raise UserError(
            f"data.scheduler: {scheduler} needs certificates, which Dask's configuration names under "
            f"distributed.comm.tls: {error}"
        ) from None
    with client:
        yield client


async def _knock(scheduler: str) -> None:
    """Check that a Dask scheduler answers. `Client` would wait forever for a server of another kind."""
    options = Security().get_connection_args("client")
    connection = await asyncio.wait_for(connect(scheduler, timeout=CONNECT_SECONDS, **options), CONNECT_SECONDS)
    connection.abort()


@contextmanager
def _marked(folders: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Put a file with a unique name into each folder, under the name of a temporary file."""
    with ExitStack() as stack:
        marks = tuple(folder / f".{secrets.token_hex(8)}.tmp" for folder in folders)
        for mark in marks:
            mark.touch()
            stack.callback(mark.unlink, missing_ok=True)
        yield marks


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask's log lines and warnings, because this module reports problems itself."""
    known = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in known}
    try:
        for logger in levels:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _check_versions(client: Client) -> None:
    """Compare the versions of the scheduler and of every worker with the versions here."""
    versions = client.get_versions(packages=list(PACKAGES[1:]))
    here = _versions(versions["client"])
    places = {"the scheduler": versions["scheduler"]}
    places |= {f"worker {address}": found for address, found in versions["workers"].items()}
    for place, found in places.items():
        there = _versions(found)
        wrong = [
            f"{name} {there[name]} there, {here[name]} here"
            for name in PACKAGES
            if there[name] != here[name] and not (place == "the scheduler" and name in DECODERS)
        ]
        if wrong:
            raise UserError(f"{place} runs {', '.join(wrong)}: start it from the same image or environment")


def _versions(found: dict[str, Any]) -> dict[str, str]:
    versions = {name: str(found["packages"].get(name)) for name in PACKAGES}
    return versions | {"python": ".".join(versions["python"].split(".")[:2])}


def _check_workers(client: Client, task: Task[Any], file: Path) -> None:
    """Check the scheduler, which unpickles the work, and every worker before the work begins."""
    address = client.scheduler.address
    try:
        client.run_on_scheduler(callable, task)
    except Exception as error:  # of any kind, because Dask passes errors on as text
        raise UserError(f"the scheduler at {address} {_words(error) or 'has gone'}") from error
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError:
        raise UserError(f"{address} has no workers: start some with `dask worker {address} --nthreads 1`") from None
    answers = client.run(task.misfit, file, on_error="return")
    misfits = {address: words for address, answer in answers.items() if (words := _words(answer))}
    if misfits:
        address, words = next(iter(misfits.items()))
        others = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise UserError(f"worker {address}{others} {words}")


def _words(answer: str | Exception | None) -> str | None:
    """Return the reason in a worker's answer. A worker that has died meanwhile does not matter."""
    if isinstance(answer, OSError):
        return None
    if isinstance(answer, Exception):
        return f"cannot run Convoy ({answer}): start it from the same image or checkout as this one"
    return answer
