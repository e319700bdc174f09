import json
import time
from typing import TextIO

from starlette.types import Scope

from serving.endpoint.admission import Visit

MAX_PATH = 200
"""Characters of a path that are logged."""


class AccessLog:
    """One line of JSON for each request, those that are refused included; without queries and bodies."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream

    def write(self, scope: Scope, visit: Visit, status: int, seconds: float) -> None:
        """Log a request that was answered after so many seconds."""
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
