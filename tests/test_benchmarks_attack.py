import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from benchmarks.attack import __main__ as measurement
from benchmarks.attack import overload, uploads
from benchmarks.attack.clients import ATTACKS, Attackers, Attacking, Outcome, Size
from benchmarks.attack.invalid import INVALID, ask
from benchmarks.attack.others import ask as ask_politely
from benchmarks.attack.watch import Watch
from benchmarks.report import Report
from benchmarks.serve_load import Call
from benchmarks.serve_servers import Running

REFUSAL = b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def serving(handle: Handle) -> Iterator[int]:
    """A server of a few lines, on a port of its own."""
    started, loop = threading.Event(), asyncio.new_event_loop()
    ports, ended = [], asyncio.Event()

    async def safely(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        async with await asyncio.start_server(safely, "127.0.0.1", 0, backlog=1000) as server:
            ports.append(server.sockets[0].getsockname()[1])
            started.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    started.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    _, _, length = head.lower().partition(b"content-length: ")
    await reader.readexactly(int(length.partition(b"\r\n")[0]))


async def refuses_after_64_kb(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(65536)
    writer.write(REFUSAL)
    await writer.drain()
    writer.write_eof()
    while await reader.read(65536):
        pass


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


def test_what_is_refused_is_counted():
    with serving(refuses_after_64_kb) as port, Attacking("endless-header", port, Size(5, seconds=30)) as attack:
        pass
    outcome = attack.outcome
    assert (outcome.opened, outcome.closed, outcome.left_open, outcome.refused) == (5, 5, 0, 0)
    assert outcome.statuses == {503: 5}
    assert outcome.answers == {503: REFUSAL.decode()}
    assert outcome.sent_bytes > 5 * 65536


def test_an_attack_is_bounded_in_bytes_and_seconds():
    with serving(says_nothing) as port, Attacking("endless-url", port, Size(3, seconds=1, max_mb=1)) as attack:
        pass
    outcome = attack.outcome
    assert (outcome.opened, outcome.closed, outcome.left_open) == (3, 0, 3)
    # Each may have begun a block when the last byte was spent.
    assert 1e6 <= outcome.sent_bytes <= 1e6 + 3 * 70_000


def test_what_is_closed_is_opened_again_where_it_is_asked_for():
    with (
        serving(refuses_after_64_kb) as port,
        Attacking("many-headers", port, Size(2, seconds=1.5, again=True)) as attack,
    ):
        pass
    assert attack.outcome.opened > 2
    assert attack.outcome.closed + attack.outcome.left_open == attack.outcome.opened


def test_every_attack_goes_on_until_its_end():
    async def everyone(port: int) -> list[Outcome]:
        size = Size(2, seconds=0.5, max_mb=1)
        return await asyncio.gather(*(Attackers(attack, port, size).run() for attack in ATTACKS.values()))

    with serving(says_nothing) as port:
        outcomes = dict(zip(ATTACKS, asyncio.run(everyone(port)), strict=True))
    for name, outcome in outcomes.items():
        assert (outcome.opened, outcome.left_open) == (2, 2), name
        assert (outcome.sent_bytes > 0) == (name != "silent")


def test_where_nobody_listens_an_attack_is_refused():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Attacking("silent", unused.getsockname()[1], Size(4, seconds=1)) as attack:
            pass
    assert (attack.outcome.opened, attack.outcome.refused) == (0, 4)


def call_to(port: int) -> Call:
    return Call(port, "/classify", [b"image"], {"Content-Type": "image/png"})


def test_others_are_answered_or_counted_as_lost():
    asked = iter(range(1000))

    async def fails_sometimes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            number = next(asked)
            if number == 3:
                return
            writer.write(REFUSAL if number == 5 else ANSWER)
            if number == 5:
                return

    with serving(fails_sometimes) as port:
        answered = ask_politely(call_to(port), seconds=0.5, rate=40)
    assert len(answered.latencies) == 18
    assert answered.failures == {"503": 1, "RuntimeError: closed after b''": 1}
    assert answered.num_lost == 2
    assert answered.p99 == 10


def test_clients_that_do_not_back_off_are_counted_by_their_answers():
    asked = iter(range(10**9))

    async def answers_one_in_ten(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            if next(asked) % 10:
                writer.write(REFUSAL)
                return
            writer.write(ANSWER)

    with serving(answers_one_in_ten) as port:
        closed = overload.closed_loop(call_to(port), num_clients=20, seconds=0.5)
        opened = overload.open_loop(call_to(port), rate=200, seconds=0.5)
    for result in (closed, opened):
        assert not result.failures
        share = len(result.answered) / (len(result.answered) + len(result.refused))
        assert share == pytest.approx(0.1, abs=0.03)
        assert result.goodput <= result.offered
        assert result.refusal_p99 > 0
    assert opened.offered + opened.unsent / 0.5 == pytest.approx(200, rel=0.3)


def test_what_is_invalid_is_sent_as_it_stands():
    received = []

    async def keeps(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(65536))
        writer.write(b"HTTP/1.1 400 Bad\r\nX-A: b\r\nContent-Length: 2\r\n\r\n{}")

    with serving(keeps) as port:
        answer = ask(port, INVALID["TLS"])
        assert (answer.status, answer.headers["x-a"], answer.body) == (400, "b", b"{}")
    assert received == [INVALID["TLS"]]
    assert INVALID["TLS"].startswith(b"\x16\x03\x01")
    # Each is another request.
    assert len(set(INVALID.values())) == len(INVALID)


def test_the_memory_of_a_process_is_watched():
    program = "import sys; sys.stdin.readline(); held = b'x' * 50_000_000; print(flush=True); sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with Watch(psutil.Process(process.pid)) as watch:
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            threading.Event().wait(0.2)
        assert 45_000_000 < watch.growth < 100_000_000
        assert watch.is_alive_still
        process.kill()
        process.wait()
        assert not watch.is_alive_still


class Stub:
    """In the place of an endpoint: a server of a few lines, in this process."""

    name = "Convoy"

    def __init__(self, port: int) -> None:
        self.port = port

    def recover(self) -> None:
        pass

    def call(self) -> Call:
        return call_to(self.port)

    def watch(self) -> Watch:
        return Watch(psutil.Process())


def test_attacks_and_overload_are_measured(monkeypatch):
    for name, value in (("CALM_SECONDS", 0.5), ("ATTACK_SECONDS", 0.5), ("LOAD_SECONDS", 0.3), ("CLIENTS", (1, 2))):
        monkeypatch.setattr(measurement, name, value)

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(0.02)
            writer.write(ANSWER)

    report = Report("x")
    with serving(answers) as port:
        measurement.Attacks(report, [Stub(port)]).measure(["silent"], rounds=1)
        measurement.measure_overload(report, Stub(port))
    rows = {row.metric: row for row in report.rows}
    assert rows["Convoy: p99 of others, silent"].value > 0
    assert (rows["Convoy: ended"].value, rows["Convoy: requests of others lost"].value) == (0, 0)
    assert rows["Convoy: goodput / best, 20 clients"].value > 0
    assert rows["Convoy: goodput / best, 10 x as many new clients a second"].value > 0


def test_single_uploads_are_measured(monkeypatch):
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(ANSWER)

    report = Report("x")
    with serving(answers) as port:
        started = Running(None, port, psutil.Process(), 0)
        uploads.add_figures(report, "bombs", started, {"a": b"image", "b": b"another"})
    cost, failed = report.rows
    assert (cost.goal, cost.is_limit, failed.value) == (1, True, 0)
    assert cost.reference.endswith("2 uploads, one after another")
