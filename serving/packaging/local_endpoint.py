import contextlib
import errno
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from core.errors import UserError
from serving.config import ServingConfig
from serving.endpoint.auth import ALLOW_ANONYMOUS, TOKENS, TOKENS_FILE, read_tokens, require_protection
from serving.packaging.bento import BENTO_FILE, Bento

READY_SECONDS = 120
"""A large model on a busy machine takes half a minute."""
STOP_SECONDS = 15
"""Requests in flight have this long to be answered."""
REQUEST_SECONDS = 60
LOG_LINES = 20
MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"}
"""Environment of an endpoint, which has to be there when it starts: one arena, as several keep 10 MB more and take as
much of the processor; large pages where the system grants them, as a prediction by AlexNet reads 234 MB of weights."""
RAW = {"Content-Type": "application/octet-stream"}
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Listening on every address, an endpoint is reached on this one."""

logger = logging.getLogger("convoy")


class Endpoint:
    """A Bento served by its own `serving.endpoint.server`, ready inside the `with` block and gone after it.

    Attributes:
        address: the numeric address that it listens on.
        url: where it answers, such as http://127.0.0.1:3000.

    """

    def __init__(self, bento: Bento, *, host: str = "127.0.0.1", port: int = 0, is_public: bool = False) -> None:
        """Prepare to serve `bento`; port 0 means any free one.

        A public endpoint asks for the tokens that the environment names, and passes its errors on to stderr; any other
        is for the caller alone.

        Raises:
            UserError: the Bento is gone, the host is unknown, or the port is in use or may not be used.

        """
        if not (bento.path / BENTO_FILE).is_file():
            raise UserError(f"{bento.path} holds no Bento any more: package the model again with `convoy package`")
        self._bento = bento
        self.address, self._port = _claim(host, port)
        self._reach = ANY_ADDRESS.get(self.address, self.address)
        self._is_public = is_public
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self.url = f"http://{f'[{self._reach}]' if ':' in self._reach else self._reach}:{self._port}"

    def __enter__(self) -> Self:
        """Start the process and wait until the model has passed its test.

        Raises:
            UserError: the endpoint died, refused its model, or was not ready in `READY_SECONDS`; ends with its log.

        """
        with contextlib.ExitStack() as stack:
            # Served from its folder, a Bento needs no store; a home of its own keeps its metrics from those of others.
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="convoy-serve-"))
            self._process = self._start(home)
            self._follower = threading.Thread(target=self._follow, daemon=True)
            stack.callback(self._stop)
            self._follower.start()
            self._wait_until_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the process: requests in flight have `STOP_SECONDS` to be answered."""
        self._stack.close()

    def classify(self, image: bytes) -> dict[str, Any]:
        """Give the endpoint's answer to the bytes of an image file.

        Raises:
            UserError: it refused the image, or cannot be reached; with its reason.

        """
        try:
            status, body = self._request("POST", "/classify", REQUEST_SECONDS, image)
            answer: dict[str, Any] = json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UserError(f"{self.url} does not answer: {error}", exit_code=1) from None
        if status != 200:
            raise UserError(f"{self.url} refused the image: {answer.get('detail', answer)}", exit_code=1)
        return answer

    def wait(self) -> int:
        """Wait until the endpoint ends by itself; give its exit status."""
        return self._process.wait()

    def _start(self, home: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "serving.endpoint.server", "--host", self.address, "--port", str(self._port)]
        # The Bento stays as it was built: no __pycache__ in it.
        environment = {"BENTOML_HOME": home, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen(
            command,
            # Python looks here first: what is run is the Bento's code, not that of this folder.
            cwd=self._bento.path / "src",
            env=MALLOC | os.environ | environment | self._protection(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C in the terminal is for the command, which then stops its endpoint in order.
            start_new_session=True,
        )

    def _protection(self) -> dict[str, str]:
        # Whether it may be open to other machines was decided before it is started.
        allowed = {ALLOW_ANONYMOUS: "true"}
        if not self._is_public:
            return {TOKENS: "", TOKENS_FILE: "", **allowed}
        # The endpoint runs in the Bento's folder, where a relative path would lead elsewhere.
        file = {TOKENS_FILE: str(Path(name).absolute())} if (name := os.environ.get(TOKENS_FILE)) else {}
        return file | allowed

    def _follow(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._log.append(line.rstrip())
                if self._is_public:
                    sys.stderr.write(line)

    def _wait_until_ready(self) -> None:
        give_up = time.monotonic() + READY_SECONDS
        while time.monotonic() < give_up:
            if self._process.poll() is not None:
                raise self._failed(f"ended with status {self._process.returncode} before it was ready")
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, _ = self._request("GET", "/readyz", timeout=1)
                if status == 200:
                    return
                raise self._failed("refuses its model")
            time.sleep(0.05)
        raise self._failed(f"was not ready after {READY_SECONDS} seconds")

    def _failed(self, what: str) -> UserError:
        self._follower.join(0.5)  # its last lines may still be on their way
        log = "\n".join(self._log) or "it logged nothing"
        return UserError(f"the endpoint of {self._bento.tag} {what}:\n{log}", exit_code=1)

    def _request(self, method: str, path: str, timeout: float, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._reach, self._port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body, {} if body is None else RAW)
            response = connection.getresponse()
            return response.status, response.read()

    def _stop(self) -> None:
        try:
            self._process.terminate()
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning("the endpoint of %s did not stop in %d seconds: killed", self._bento.tag, STOP_SECONDS)
            self._process.kill()
            self._process.wait()
        finally:
            self._follower.join(STOP_SECONDS)


def serve(bento: Bento, config: ServingConfig) -> int:
    """Serve a Bento on `config.host` and `config.port` until Ctrl-C or SIGTERM, and then give exit status 0.

    Raises:
        UserError: it would be open to other machines without a token, cannot start, or ended by itself.

    """
    endpoint = Endpoint(bento, host=config.host, port=config.port, is_public=True)
    tokens = read_tokens(os.environ)
    require_protection(endpoint.address, tokens, allow_anonymous=config.allow_anonymous)
    header = "-H 'Authorization: Bearer TOKEN' " if tokens else ""
    with contextlib.suppress(KeyboardInterrupt), _signals_as_ctrl_c(), endpoint:
        print(f"serving {bento.model_name} v{bento.model_version} on {endpoint.url}  (Ctrl-C stops)")
        print(f"  curl {header}-F image=@some.png {endpoint.url}/classify", flush=True)
        status = endpoint.wait()
        raise UserError(f"the endpoint of {bento.tag} ended by itself, with status {status}", exit_code=1)
    return 0


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the block as Ctrl-C does, so that nothing is left running."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _claim(host: str, port: int) -> tuple[str, int]:
    """Give the numeric address of `host`, and `port` or a free one in place of 0, where one can listen there."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            # As the server itself will do: connections that were closed a moment ago do not count as use.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            found: tuple[str, int] = listener.getsockname()[:2]
            return found
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            remedy = "choose another with --port, or stop what listens there"
            raise UserError(f"port {port} is in use: {remedy}") from None
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}") from None
