"""Build step of an image: start the endpoint once, and keep the bytecode of all imported modules.

The build fails if the endpoint does not become ready or does not answer. Uses the standard library only.
"""

import base64
import contextlib
import http.client
import json
import os
import py_compile
import signal
import subprocess
import sys
import time
from pathlib import Path

PORT = 3000
READY_SECONDS = 300
"""Long, because an image for another processor is built in emulation."""
MANIFEST = Path("model/manifest.json")


def main() -> None:
    """Run the endpoint once. The current folder is the Bento's `src`."""
    bytecode = Path(os.environ["PYTHONPYCACHEPREFIX"])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    endpoint = subprocess.Popen([sys.executable, "-m", "serving.endpoint.server", "--port", str(PORT)], env=environment)
    try:
        _wait(endpoint)
        for path in ("/", "/model", "/openapi.json", "/metrics"):
            _ask(path)
        golden = base64.b64decode(json.loads(MANIFEST.read_text(encoding="utf-8"))["golden"]["image"])
        for path in ("/classify", "/explain"):
            _ask(path, golden)
    finally:
        endpoint.terminate()
        status = endpoint.wait(30)
    # Uvicorn shuts down, and then raises the signal that it received.
    if status not in (0, -signal.SIGTERM):
        sys.exit(f"the endpoint ended with status {status}")
    print(f"rehearsed; bytecode of {_freeze(bytecode)} modules kept")


def _wait(endpoint: "subprocess.Popen[bytes]") -> None:
    give_up = time.monotonic() + READY_SECONDS
    while endpoint.poll() is None and time.monotonic() < give_up:
        with contextlib.suppress(OSError):
            return _ask("/readyz")
        time.sleep(0.1)
    sys.exit("the endpoint did not become ready")


def _ask(path: str, body: bytes | None = None) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=READY_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        answer = response.read()
    if response.status != 200:
        sys.exit(f"the endpoint answers {path} with {response.status}: {answer[:200].decode(errors='replace')}")


def _freeze(bytecode: Path) -> int:
    """Recompile with the hash of each source instead of its modification time, which copying may change.

    Python compares the hash at each import, so a later change of a source takes effect. Bytecode lies under the path of
    its source: /opt/bytecode/usr/lib/a.cpython-311.pyc belongs to /usr/lib/a.py.
    """
    files = sorted(bytecode.rglob("*.pyc"))
    for file in files:
        source = Path("/", file.relative_to(bytecode)).with_name(f"{file.name.partition('.')[0]}.py")
        with contextlib.suppress(FileNotFoundError):
            py_compile.compile(
                str(source), str(file), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH
            )
    return len(files)


if __name__ == "__main__":
    main()
