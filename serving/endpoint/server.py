"""Serves the Bento that contains this file, in one process: `python -m serving.endpoint.server` in the folder `src`.

`bentoml serve` starts a supervisor beside its worker. The supervisor doubles the memory of an endpoint without its
model, and holds the socket: connections hang, instead of being refused, before the worker is up and while it ends.
Importing BentoML also takes more time and memory than everything else before the first answer.
"""

import argparse
import asyncio
import logging
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, cast

import uvicorn

from core.errors import UserError
from serving.endpoint.auth import ALLOW_ANONYMOUS, read_tokens, require_protection
from serving.endpoint.connection import Connection
from serving.endpoint.deadlines import Deadlines, connection_limit

if TYPE_CHECKING:
    from serving.endpoint.middleware import Front

DRAIN_SECONDS = 12
"""Time limit for requests in flight after SIGTERM. New requests are refused at once."""


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m serving.endpoint.server", description="Serve this Bento.")
    parser.add_argument("--host", default="127.0.0.1", help="numeric address to listen on")
    parser.add_argument("--port", type=int, default=3000)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    try:
        allow_anonymous = os.environ.get(ALLOW_ANONYMOUS, "").lower() == "true"
        require_protection(arguments.host, read_tokens(os.environ), allow_anonymous=allow_anonymous)
    except UserError as error:
        sys.exit(f"convoy: {error}")
    app = load_app()
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        http=cast("type[asyncio.Protocol]", partial(Connection, door=app, deadlines=Deadlines(connection_limit()))),
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def load_app() -> "Front":
    """Load the model and make the app. Before that, nothing listens."""
    # Imported here, so that errors in tokens are reported at once.
    from serving.endpoint.setup import ENVIRONMENT, load_classifier, make_app

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    classifier = load_classifier()
    return make_app(lambda: classifier)


if __name__ == "__main__":
    main()
