"""Invalid requests, and requests for missing resources. An endpoint must answer each with a 4xx."""

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.attack.clients import HOST

TIMEOUT_SECONDS = 30.0


def _client_hello() -> bytes:
    """Make the first bytes of a TLS client."""
    sent = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def _get(target: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: a", *headers, "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _post(*headers: str, body: str = "") -> bytes:
    return _get("/classify", "Content-Type: image/png", *headers, method="POST") + body.encode("latin-1")


INVALID = {
    "TLS": _client_hello(),
    "noise": bytes(range(256)) + b"\r\n\r\n",
    "zeros": bytes(4096),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a version of its own": _get("/", version="9.9"),
    "a method of its own": _get("/", method="BREW"),
    "TRACE": _get("/", method="TRACE"),
    "TRACE a probe": _get("/readyz", method="TRACE"),
    "CONNECT": _get("a:443", method="CONNECT"),
    "a lone percent": _get("/%"),
    "an encoded zero": _get("/%00"),
    "an encoded slash": _get("/..%2f..%2fetc/passwd"),
    "encoded dots": _get("/%2e%2e/%2e%2e/"),
    "no UTF-8": _get("/%ff%fe"),
    "raw bytes in a URL": _get("/\xe9\xff"),
    "a space in a URL": _get("/a b"),
    "a long URL": _get("/" + "a" * 10_000),
    "a long query": _get("/model?" + "a" * 10_000),
    "a long header": _get("/", "X-A: " + "a" * 20_000),
    "many headers": _get("/", *(f"X-{number}: a" for number in range(10_000))),
    "a zero in a header": _get("/", "X-A: a\0b"),
    "a folded header": _get("/", "X-A: a", " b"),
    "a header without a name": _get("/", ": a"),
    "a space before the colon": _get("/", "X-A : a"),
    "two lengths": _post("Content-Length: 1", "Content-Length: 2", body="ab"),
    "a negative length": _post("Content-Length: -1"),
    "a length in letters": _post("Content-Length: many"),
    "a length beyond 64 bits": _post("Content-Length: 99999999999999999999999"),
    "a length and chunks": _post("Content-Length: 5", "Transfer-Encoding: chunked", body="0\r\n\r\n"),
    "an unknown transfer coding": _post("Transfer-Encoding: many", body="0\r\n\r\n"),
    "a chunk without a size": _post("Transfer-Encoding: chunked", body="many\r\n"),
    "a chunk beyond 64 bits": _post("Transfer-Encoding: chunked", body="f" * 20 + "\r\n"),
}
"""Requests by name."""


@dataclass(frozen=True)
class Answer:
    """First answer on a connection."""

    status: int
    headers: dict[str, str]
    """by name, in lower case"""
    body: bytes


def ask(port: int, request: bytes) -> Answer | None:
    """Send bytes, and read until the server ends the connection. Returns None if there is no answer.

    Raises:
        TimeoutError: the server does not end the connection.

    """
    received = b""
    with socket.create_connection((HOST, port), timeout=TIMEOUT_SECONDS) as connection:
        try:
            connection.sendall(request)
            while piece := connection.recv(65536):
                received += piece
        except ConnectionError:
            pass  # the server has closed early
    return _parse(received) if received else None


def _parse(received: bytes) -> Answer:
    head, _, rest = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split(" ")[1]), headers, rest[: int(headers.get("content-length", len(rest)))])
