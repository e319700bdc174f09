"""Attackers: a limited number of connections to a port of this machine, for a limited time, in their own process.

`python -m benchmarks.attack.clients NAME --port 3000` runs one attack and prints the outcome as JSON.
"""

import argparse
import asyncio
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from benchmarks.attack.corpus import bombs, hostile_files

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
BLOCK = 64 * 1024
"""Bytes per write of an endless request."""
PAUSE_SECONDS = 0.1
"""Pause before a closed connection is reopened."""
MAX_ANSWER = 4096
"""Maximum bytes of a stored answer."""
UNDER_WAY = "under way"
GRACE_SECONDS = 30
"""The system kills an attack that exceeds its duration by this time."""
NICENESS = 10
"""Low priority, because the attackers share the cores with the server, unlike attackers on other machines."""


@dataclass(frozen=True)
class Attack:
    """Data that each connection of an attack sends."""

    what: str
    begins: Sequence[bytes] = (b"",)
    """first data; the connections take the items in turn"""
    more: bytes = b""
    """data sent repeatedly after that; empty: nothing"""
    pause: float = 0.0
    """seconds between two repetitions; 0: as fast as the server reads"""
    reads: bool = True
    """whether the answers are read"""


def head(path: str = "/classify", *headers: str, method: str = "POST") -> bytes:
    """Make the head of a request without its empty last line."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *headers, ""]).encode()


def _get(path: str) -> bytes:
    return head(path, method="GET") + b"\r\n"


_CHUNKED = head("/classify", "Content-Type: image/png", "Transfer-Encoding: chunked") + b"\r\n"
_LARGE = head("/classify", "Content-Type: image/png", "Content-Length: 1000000") + b"\r\n"

ATTACKS = {
    "endless-url": Attack("a URL without an end", (b"GET /",), b"a" * BLOCK),
    "endless-header": Attack("a header without an end", (head() + b"X-A: ",), b"a" * BLOCK),
    "many-headers": Attack("headers without an end", (head(),), b"X-A: aaaaaaaa\r\n" * (BLOCK // 15)),
    "endless-body": Attack("a body without an end", (_CHUNKED,), b"%x\r\n" % BLOCK + b"a" * BLOCK + b"\r\n"),
    "endless-chunk": Attack("an extension of a chunk without an end", (_CHUNKED + b"1;",), b"a" * BLOCK),
    "trailers": Attack("trailers without an end", (_CHUNKED + b"0\r\n",), b"X-A: aaaaaaaa\r\n" * (BLOCK // 15)),
    "pipelined": Attack("requests without waiting for answers", more=_get("/livez") * (BLOCK // 30), pause=0.1),
    "unread": Attack("answers that nobody reads", more=_get("/openapi.json") * 64, pause=0.1, reads=False),
    "silent": Attack("connections that send nothing"),
    "slow-header": Attack("a header a second (slowloris)", (head(),), b"X-A: a\r\n", 1.0),
    "slow-body": Attack("a byte of a body a second", (_LARGE + b"\x89PNG",), b"a", 1.0),
}
"""Attacks without images."""
BOMBS, CORPUS = "bombs", "corpus"
UPLOADS = (BOMBS, CORPUS)
"""Attacks with an image per connection: image bombs, and the files in a folder of broken images."""


def find_attack(name: str) -> Attack:
    """Return an attack by its name. Attacks with images are generated first, which takes seconds.

    Raises:
        KeyError: there is no attack with this name.

    """
    if name == BOMBS:
        return Attack("images that take long to read", [upload(image) for image in bombs().values()])
    if name == CORPUS:
        return Attack("broken images", [upload(path.read_bytes()) for path in hostile_files()])
    return ATTACKS[name]


def upload(image: bytes) -> bytes:
    """Make the request that classifies an image, as the last request of its connection."""
    headers = ("Content-Type: application/octet-stream", f"Content-Length: {len(image)}", "Connection: close")
    return head("/classify", *headers) + b"\r\n" + image


class Outcome(BaseModel):
    """Outcome of an attack."""

    opened: int = 0
    refused: int = 0
    """connections that were not accepted"""
    closed: int = 0
    """connections that the server ended"""
    left_open: int = 0
    """connections that were open when the attack ended"""
    sent_bytes: int = 0
    statuses: Counter[int] = Counter()
    """status of the first answer on each connection"""
    answers: dict[int, str] = {}
    """one answer of each status, head and body"""

    def note(self, answer: bytes) -> None:
        """Count the answer to a connection, if it got one."""
        if answer.startswith(b"HTTP/1."):
            status = int(answer[9:12])
            self.statuses[status] += 1
            self.answers.setdefault(status, answer.decode("latin-1"))


@dataclass(frozen=True)
class Size:
    """Size of an attack."""

    connections: int = 20
    seconds: float = 5.0
    max_mb: float = 200.0
    """limit in megabytes for the data of all connections together"""
    again: bool = False
    """whether to reopen a connection that the server has closed"""


DEFAULT = Size()


class Attackers:
    """The connections of one attack."""

    def __init__(self, attack: Attack, port: int, size: Size) -> None:
        """Attack the server on `port` of this machine."""
        self._attack, self._port, self._size = attack, port, size
        self._begins = cycle(attack.begins)
        self._bytes_left = size.max_mb * 1e6
        self._until = time.monotonic() + size.seconds
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Attack until the time is up, or until the server has closed every connection."""
        under_way = asyncio.Barrier(self._size.connections)
        await asyncio.gather(*(self._client(under_way) for _ in range(self._size.connections)))
        return self.outcome

    async def _client(self, under_way: asyncio.Barrier) -> None:
        streams = await self._open()
        if await under_way.wait() == 0:
            print(UNDER_WAY, flush=True)
        while True:
            if streams:
                await self._use(*streams)
            if not self._size.again or self._seconds_left() < PAUSE_SECONDS:
                return
            await asyncio.sleep(PAUSE_SECONDS)
            streams = await self._open()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            streams = await asyncio.wait_for(asyncio.open_connection(HOST, self._port), self._seconds_left())
        except (OSError, TimeoutError):
            self.outcome.refused += 1
            return None
        self.outcome.opened += 1
        return streams

    async def _use(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sending = asyncio.create_task(self._send(writer))
        ended = self._read(reader) if self._attack.reads else self._wait_for_reset(sending)
        try:
            await asyncio.wait_for(ended, self._seconds_left())
            self.outcome.closed += 1
        except TimeoutError:
            self.outcome.left_open += 1
        finally:
            sending.cancel()
            writer.transport.abort()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await self._write(writer, next(self._begins))
            while self._attack.more and self._bytes_left > 0:
                await self._write(writer, self._attack.more)
                await asyncio.sleep(self._attack.pause)
            await asyncio.Future()  # keep the connection open after all data

    async def _write(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        writer.write(piece)
        self.outcome.sent_bytes += len(piece)
        self._bytes_left -= len(piece)
        await writer.drain()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Read until the server ends the connection, and note the first answer."""
        answer = b""
        with suppress(OSError):
            while piece := await reader.read(BLOCK):
                answer += piece[: MAX_ANSWER - len(answer)]
        self.outcome.note(answer)

    async def _wait_for_reset(self, sending: "asyncio.Task[None]") -> None:
        """Read nothing, and wait until writing fails, which shows that the server has ended the connection."""
        await asyncio.shield(sending)

    def _seconds_left(self) -> float:
        return self._until - time.monotonic()


class Attacking:
    """Attack in its own process. It has tried all its connections when the `with` block begins.

    Attributes:
        outcome: outcome of the attack, complete after the block, which waits for the end of the attack.

    """

    def __init__(self, name: str, port: int, size: Size = DEFAULT) -> None:
        """Prepare the attack `name` on a port of this machine."""
        self._size = size
        options = [f"--{option}={json.dumps(value)}" for option, value in asdict(size).items()]
        self._command = [sys.executable, "-m", "benchmarks.attack.clients", name, f"--port={port}", *options]
        self.outcome = Outcome()

    def __enter__(self) -> Self:
        """Start the attack.

        Raises:
            RuntimeError: the attack does not start.

        """
        self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._output = self._process.stdout
        if self._output.readline().strip() != UNDER_WAY:
            self._end()
            raise RuntimeError(f"the attack does not start: {' '.join(self._command)}")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the end of the attack, or end it if the block has failed."""
        try:
            if kind is None:
                self.outcome = Outcome.model_validate_json(self._output.read())
        finally:
            self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()


def raise_file_limit() -> None:
    """Raise this process's limit on open files to the maximum."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    """Run one attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*ATTACKS, *UPLOADS])
    parser.add_argument("--port", type=int, required=True)
    for option, value in asdict(DEFAULT).items():
        parser.add_argument(f"--{option}", type=json.loads, default=value)
    arguments = vars(parser.parse_args())
    attack, port = find_attack(arguments.pop("name")), arguments.pop("port")
    signal.alarm(math.ceil(arguments["seconds"]) + GRACE_SECONDS)
    raise_file_limit()
    os.nice(NICENESS)
    outcome = asyncio.run(Attackers(attack, port, Size(**arguments)).run())
    print(outcome.model_dump_json())


if __name__ == "__main__":
    main()
