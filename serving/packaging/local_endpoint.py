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
from serving.config import SAMPLES_DIR, ServingConfig
from serving.endpoint.auth import ALLOW_ANONYMOUS, TOKENS, TOKENS_FILE, read_tokens, require_protection
from serving.packaging.bento import BENTO_FILE, Bento

READY_SECONDS = 120
"""A large model takes half a minute on a busy machine."""
STOP_SECONDS = 15
"""Time limit for requests in flight when the endpoint stops."""
REQUEST_SECONDS = 60
LOG_LINES = 20
MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"}
"""Environment that glibc reads when an endpoint starts. One arena: several arenas keep 10 MB more and save no CPU time.
Huge pages, where the system grants them: a prediction by AlexNet reads 234 MB of weights."""
RAW = {"Content-Type": "application/octet-stream"}
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""An endpoint that listens on every address is reached on this one."""

logger = logging.getLogger("convoy")


class Endpoint:
    """Process that serves a Bento with the Bento's own `serving.endpoint.server`, for the length of a `with` block.

    Attributes:
        address: numeric address on which the endpoint listens.
        url: address for clients, such as http://127.0.0.1:3000.

    """

    def __init__(self, bento: Bento, *, host: str = "127.0.0.1", port: int = 0, is_public: bool = False) -> None:
        """Prepare to serve `bento`. Port 0 means any free port.

        A public endpoint asks for the tokens that the environment names, and copies its log to stderr. A private
        endpoint serves only its caller.

        Raises:
            UserError: the Bento is gone, the host is unknown, or the port is in use or not permitted.

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
            UserError: the endpoint exited, refused its model, or was not ready in `READY_SECONDS`. The message ends
                with the log.

        """
        with contextlib.ExitStack() as stack:
            # The Bento is served from its folder, without a store. Its own home separates its metrics.
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
        """Stop the process. Requests in flight have `STOP_SECONDS` to finish."""
        self._stack.close()

    def classify(self, image: bytes) -> dict[str, Any]:
        """Post the bytes of an image file, and return the answer.

        Raises:
            UserError: the endpoint refused the image, or cannot be reached. The message gives the reason.

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
        """Wait until the endpoint exits by itself, and return its exit status."""
        return self._process.wait()

    def _start(self, home: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "serving.endpoint.server", "--host", self.address, "--port", str(self._port)]
        # Keep __pycache__ out of the Bento.
        environment = {"BENTOML_HOME": home, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen(
            command,
            # `python -m` imports from the working directory first: the Bento's code, not the installed code.
            cwd=self._bento.path / "src",
            env=MALLOC | os.environ | environment | self._protection(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C must reach only the command, which then stops the endpoint.
            start_new_session=True,
        )

    def _protection(self) -> dict[str, str]:
        # `require_protection` in `serve` has decided already whether other machines may reach the endpoint.
        allowed = {ALLOW_ANONYMOUS: "true"}
        if not self._is_public:
            return {TOKENS: "", TOKENS_FILE: "", SAMPLES_DIR: "", **allowed}
        # The endpoint runs in the Bento's folder, so a relative path would be wrong.
        file = {TOKENS_FILE: str(Path(name).absolute())} if (name := os.environ.get(TOKENS_FILE)) else {}
        samples = os.environ.get(SAMPLES_DIR, "outputs/samples")
        return file | allowed | {SAMPLES_DIR: str(Path(samples).absolute())}

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
        self._follower.join(0.5)  # let the last lines of the log arrive
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
    """Serve a Bento on `config.host` and `config.port` until Ctrl-C or SIGTERM, then return exit status 0.

    Raises:
        UserError: other machines could reach the endpoint without a token, or it cannot start, or it exited by itself.

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
    """Treat SIGTERM and SIGHUP (a closed terminal) as Ctrl-C, so that no process is left running."""

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
    """Resolve `host` to a numeric address, and port 0 to a free port. Check that the port can be bound."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            # As in the server: connections in TIME_WAIT do not occupy the port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            found: tuple[str, int] = listener.getsockname()[:2]
            return found
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            remedy = "choose another with --port, or stop what listens there"
            raise UserError(f"port {port} is in use: {remedy}") from None
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}") from None
