import asyncio
import json
import re
import resource
import time
from collections.abc import Iterator

import pytest
from listening import all_of, connect, listening
from starlette.requests import Request
from starlette.responses import Response

from serving.endpoint import deadlines as deadlines_module
from serving.endpoint.auth import Tokens
from serving.endpoint.deadlines import MAX_CONNECTIONS, RESERVED_FILES, Deadlines, connection_limit
from serving.endpoint.metrics import Metrics
from serving.endpoint.middleware import Front, Route

METRICS = Metrics()
GET = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
TOKEN = {"00" * 32: "somebody"}


async def hello(_request: Request) -> Response:
    return Response("hello")


async def size(request: Request) -> Response:
    return Response(str(len(await request.body())))


async def soon(_request: Request) -> Response:
    await asyncio.sleep(0.3)
    return Response("soon")


def front(tokens: Tokens | None = None) -> Front:
    routes = {"/hello": Route("GET", hello), "/size": Route("POST", size), "/soon": Route("GET", soon)}
    routes["/early"] = Route("POST", hello)
    return Front(routes, tokens or Tokens(), lambda: METRICS.of(None))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening(front()) as port:
        yield port


def parse(answer: bytes) -> tuple[int, dict[str, str], dict[str, str]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(status.split()[1]), headers, json.loads(body)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"a" * 8200 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /" + b"a" * 50_000, 414),  # has no end
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 17_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 50_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"a" * 50_000, 431),
        (b"GET / HTTP/1.1\r\n" + (b"A: " + b"a" * 8000 + b"\r\n") * 10, 431),
        (b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 102, 431),
        (b"POST /size HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 400_000, 431),
        (b"POST /size HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: aa\r\n" * 50_000, 431),
        (b"\r\n" * 300_000, 431),
        (b"\0\xff\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT a:80 HTTP/1.1\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\n\r\n", 400),
        (b"POST /size HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /size HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"TRACE /hello HTTP/1.1\r\nConnection: close\r\n\r\n", 405),
        (b"GET /%00 HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
        (b"GET /..%2f HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
    ],
)
def test_what_is_no_request_is_refused_in_json_and_the_connection_ends(port, sent, status):
    found, headers, problem = parse(all_of(connect(port, sent)))
    assert (found, problem.keys()) == (status, {"error", "detail"})
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"
    assert len(headers["x-request-id"]) == 32
    assert headers["connection"] == "close"


def test_what_is_within_the_limits_is_answered(port):
    headers = b"".join(b"A%d: " % number + b"a" * 15_000 + b"\r\n" for number in range(4))
    sent = b"GET /hello?" + b"a" * 8000 + b" HTTP/1.1\r\nConnection: close\r\n" + headers + b"\r\n"
    assert all_of(connect(port, sent)).endswith(b"\r\n\r\nhello")
    # A large body that came with the head of the next request.
    sent = b"POST /size HTTP/1.1\r\nContent-Length: 200000\r\n\r\n" + b"a" * 200_000 + LAST
    assert all_of(connect(port, sent)).endswith(b"\r\n\r\nhello")


def test_a_head_that_comes_byte_by_byte_is_answered(port):
    connection = connect(port)
    for byte in LAST:
        connection.sendall(bytes([byte]))
    assert all_of(connection).endswith(b"\r\n\r\nhello")


def test_an_error_is_told_after_the_answers_before_it(port):
    soon = b"GET /soon HTTP/1.1\r\nHost: a\r\n\r\n"
    answers = all_of(connect(port, soon + GET + b"junk\r\n\r\n"))
    first, second, problem = re.split(rb"HTTP/1.1 (?=\d)", answers)[1:]
    assert first.endswith(b"soon")
    assert second.endswith(b"hello")
    assert problem.startswith(b"400 ")


def test_only_some_requests_may_be_sent_ahead(port):
    answers = all_of(connect(port, b"GET /soon HTTP/1.1\r\n\r\n" + GET * 5000)).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * 17 + [b"429"]


def test_a_wish_for_another_protocol_is_passed_over(port):
    sent = b"GET /hello HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert all_of(connect(port, sent)).endswith(b"\r\n\r\nhello")


def test_what_is_refused_is_refused_before_its_body_and_the_connection_lives():
    with listening(front(Tokens(TOKEN))) as port, connect(port) as connection:
        for _ in range(3):
            connection.sendall(b"POST /size HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
            status, headers, _ = parse(connection.recv(65536))
            assert (status, "connection" in headers) == (401, False)
            connection.sendall(b"a" * 1000)
        # Too long to be read in vain; and what was not asked for yet is not waited for.
        connection.sendall(b"POST /size HTTP/1.1\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
        status, headers, _ = parse(connection.recv(65536))
        assert (status, headers["connection"]) == (401, "close")
        assert parse(all_of(connect(port, b"HEAD /size HTTP/1.0\r\n\r\n")) + b"{}")[0] == 401


@pytest.mark.parametrize(
    ("length", "body"),
    [
        (b"Content-Length: 8000000", b"a" * 8_000_000),
        (b"Transfer-Encoding: chunked", b"7a1200\r\n" + b"a" * 8_000_000),
        # The chunk ends sooner than the client thinks: what follows is no HTTP.
        (b"Transfer-Encoding: chunked", b"fffff\r\n" + b"a" * 3_000_000),
    ],
    ids=["length", "chunk", "junk"],
)
def test_an_answer_before_the_body_reaches_a_client_that_sends_on(port, length, body):
    with connect(port, b"POST /early HTTP/1.1\r\nConnection: close\r\n" + length + b"\r\n\r\n") as connection:
        connection.sendall(body)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nhello")


def hasty(**seconds: float) -> Deadlines:
    deadlines = Deadlines(5)
    for name in ("idle", "head", "body", "rest", "unread", "end"):
        getattr(deadlines, name).seconds = seconds.get(name, 60.0)
    return deadlines


@pytest.fixture
def _ticking(monkeypatch) -> None:
    monkeypatch.setattr(deadlines_module, "TICK_SECONDS", 0.02)


@pytest.mark.usefixtures("_ticking")
def test_silent_and_slow_clients_are_given_up():
    deadlines = hasty(idle=0.2, head=0.2, rest=0.2, end=0.2)
    with listening(front(Tokens(TOKEN)), deadlines) as port:
        assert all_of(connect(port)) == b""
        assert all_of(connect(port, b"\r\n\r\n")) == b""
        status, _, problem = parse(all_of(connect(port, b"GET / HT")))
        assert (status, problem["error"]) == (408, "request_timeout")
        # The rest of a body that was refused does not come.
        refused = all_of(connect(port, b"POST /size HTTP/1.1\r\nContent-Length: 1000\r\n\r\na"))
        assert parse(refused)[0] == 401
        # A client that has its last answer and does not go.
        with connect(port, b"junk\r\n\r\n") as connection:
            assert b" 400 " in connection.recv(65536)
            assert connection.recv(65536) == b""
            until = time.monotonic() + 10
            while deadlines.end.since and time.monotonic() < until:
                time.sleep(0.01)
            assert not deadlines.end.since


@pytest.mark.usefixtures("_ticking")
def test_a_header_now_and_then_keeps_no_connection_open():
    with listening(front(), hasty(head=0.3)) as port, connect(port, b"GET / HTTP/1.1\r\n") as connection:
        connection.settimeout(0.05)
        answer = b""
        until = time.monotonic() + 10
        while not answer and time.monotonic() < until:
            connection.sendall(b"A: a\r\n")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_the_connection_that_was_idle_longest_goes_first():
    with listening(front(), hasty()) as port:
        silent = []
        for _ in range(5):
            silent.append(connect(port))
            time.sleep(0.02)  # so that they are accepted one by one
        silent[0].sendall(GET)
        assert silent[0].recv(65536).endswith(b"hello")
        with connect(port, GET) as newcomer:
            assert newcomer.recv(65536).endswith(b"hello")
            assert silent[1].recv(1) == b""
            for connection in (silent[0], silent[2]):
                connection.sendall(GET)
                assert connection.recv(65536).endswith(b"hello")
        for connection in silent:
            connection.close()


def test_requests_that_are_answered_keep_their_connections():
    with listening(front(), hasty()) as port:
        busy = [connect(port, b"GET /soon HTTP/1.1\r\nConnection: close\r\n\r\n") for _ in range(5)]
        time.sleep(0.1)
        status, headers, problem = parse(all_of(connect(port)))
        assert (status, headers["retry-after"], problem["error"]) == (503, "1", "overloaded")
        assert all(all_of(connection).endswith(b"soon") for connection in busy)


def test_the_heads_of_all_connections_are_held_together(monkeypatch):
    monkeypatch.setattr("serving.endpoint.wire.MAX_HEADS", 50_000)
    head = b"GET / HTTP/1.1\r\nA: " + b"a" * 15_000 + b"\r\nA: " + b"a" * 14_000 + b"\r\n"
    deadlines = hasty()
    with listening(front(), deadlines) as port:
        first = connect(port, head)
        while not deadlines.head_bytes:
            time.sleep(0.01)
        assert parse(all_of(connect(port, head)))[0] == 503
        first.sendall(b"Connection: close\r\n\r\n")
        assert parse(all_of(first))[0] == 404
        assert parse(all_of(connect(port, head + b"Connection: close\r\n\r\n")))[0] == 404
        assert deadlines.head_bytes == 0


@pytest.mark.usefixtures("_ticking")
def test_a_client_that_reads_no_answers_is_given_up():
    large = Route("GET", lambda _request: _large())
    app = Front({"/large": large}, Tokens(), lambda: METRICS.of(None))
    deadlines = hasty(unread=0.2)
    with listening(app, deadlines) as port:
        connection = connect(port, b"GET /large HTTP/1.1\r\n\r\n")
        until = time.monotonic() + 10
        while not deadlines.unread.since and time.monotonic() < until:
            time.sleep(0.01)
        assert deadlines.unread.since
        while deadlines.unread.since and time.monotonic() < until:
            time.sleep(0.01)
        assert not deadlines.unread.since
        assert len(all_of(connection)) < 50_000_000


async def _large() -> Response:
    return Response(bytes(50_000_000))


@pytest.mark.parametrize(
    ("files", "limit"),
    [(1024, 1024 - RESERVED_FILES), (2**20, MAX_CONNECTIONS), (resource.RLIM_INFINITY, MAX_CONNECTIONS)],
)
def test_there_are_fewer_connections_than_files(monkeypatch, files, limit):
    monkeypatch.setattr("resource.getrlimit", lambda _: (files, files))
    assert connection_limit() == limit


def test_no_connection_keeps_what_it_was_sent():
    deadlines = hasty()
    piece = b"A: " + b"a" * 15_000 + b"\r\n"
    whole, endless = b"GET /hello HTTP/1.1\r\n" + piece * 4 + b"\r\n", b"GET / HTTP/1.1\r\nA: " + b"a" * 60_000
    with listening(front(), deadlines) as port, connect(port, whole) as idle, connect(port, endless) as refused:
        assert idle.recv(65536).endswith(b"hello")
        assert b" 431 " in refused.recv(65536)
        for wait in (deadlines.idle, deadlines.end):
            (connection,) = wait.since
            assert not connection.headers
            assert not connection.scope
            assert not (connection.cycle and connection.cycle.scope)
        assert connection.parser is None
