"""Health check of an endpoint's image: requests `/readyz`, and prints the answer unless the status is 200.

Uses the standard library only, without site-packages: a check takes twenty milliseconds and 8 MB.
"""

import socket
import sys
import time

ADDRESS = ("127.0.0.1", 3000)
START_SECONDS = 60
"""An endpoint listens after loading its model. A large model takes half a minute on a busy machine."""
ANSWER_SECONDS = 4
MAX_BYTES = 4096
"""Docker keeps this much of a check's output."""


def main() -> None:
    """Exit with 0 if the endpoint is ready."""
    with _connect() as connection:
        connection.settimeout(ANSWER_SECONDS)
        connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        answer = b""
        while len(answer) < MAX_BYTES and (part := connection.recv(MAX_BYTES)):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(b" ")[1:2] != [b"200"]:
        sys.exit((body or head or b"an empty answer").decode(errors="replace"))


def _connect() -> socket.socket:
    """Connect as soon as the endpoint listens. Docker counts failed checks, so this check waits instead of failing."""
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            return socket.create_connection(ADDRESS, ANSWER_SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main()
