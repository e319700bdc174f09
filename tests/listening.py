"""A real server on loopback around a `Front`, in a thread of the test."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn

from serving.endpoint.connection import Connection
from serving.endpoint.deadlines import Deadlines
from serving.endpoint.middleware import Front


@contextmanager
def listening(front: Front, deadlines: Deadlines | None = None) -> Iterator[int]:
    """Listen as `serving.endpoint.server` does; gives the port."""
    protocol = partial(Connection, door=front, deadlines=deadlines or Deadlines(100))
    config = uvicorn.Config(front, http=protocol, log_config=None, proxy_headers=False, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def connect(port: int, sent: bytes = b"") -> socket.socket:
    """Open a connection, and send something."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(sent)
    return connection


def all_of(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))
