"""Serve the Bento that this file is packed in, in one process: `python -m serving.server`, in the Bento's folder `src`.

`bentoml serve` starts a supervisor beside its worker, which doubles what an endpoint takes before its model, and holds
the socket: before the worker is up, and while it ends, connections hang in place of being refused.
"""

import argparse
import logging
import os
import sys

import uvicorn
from starlette.types import ASGIApp

from data.errors import UserError
from serving.auth import ALLOW_ANONYMOUS, read_tokens, require_protection

DRAIN_SECONDS = 12
"""After SIGTERM, requests in flight have this long to be answered; new ones are refused at once."""


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m serving.server", description="Serve this Bento.")
    parser.add_argument("--host", default="127.0.0.1", help="numeric address to listen on")
    parser.add_argument("--port", type=int, default=3000)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    try:
        allow_anonymous = os.environ.get(ALLOW_ANONYMOUS, "").lower() == "true"
        require_protection(arguments.host, read_tokens(os.environ), allow_anonymous=allow_anonymous)
    except UserError as error:
        sys.exit(f"convoy: {error}")
    uvicorn.run(
        _load_app(),
        host=arguments.host,
        port=arguments.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def _load_app() -> ASGIApp:
    # Here and not above: a wrong token is told at once.
    from serving.service import ConvoyService

    # To mypy it is still the class that the decorator made a service of.
    service = ConvoyService
    for variable in service.envs:  # type: ignore[attr-defined]
        os.environ.setdefault(variable.name, variable.value)
    app: ASGIApp = service.to_asgi()  # type: ignore[attr-defined]
    return app


if __name__ == "__main__":
    main()
