import json
import time
from typing import TextIO

from starlette.types import Scope

from serving.endpoint.admission import Visit

MAX_PATH = 200
"""Maximum number of logged characters of a path."""


class AccessLog:
    """Writes one line of JSON for each request, including refused requests, without queries and bodies."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream

    def write(self, scope: Scope, visit: Visit, status: int, seconds: float) -> None:
        """Log a request that was answered after `seconds`."""
        client = scope.get("client")
        record = {
            "when": round(time.time(), 3),
            "id": visit.id.decode(),
            "client": client[0] if client else "",
            "method": scope["method"][:20],
            "path": scope["path"][:MAX_PATH],
            "status": status,
            "seconds": round(seconds, 6),
            "token": visit.client or "",
        }
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()
