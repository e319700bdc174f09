"""Serve the Bento that this file is packed in, in one process.

It is `python -m serving.endpoint.server`, in the Bento's folder `src`.

`bentoml serve` starts a supervisor beside its worker, which doubles what an endpoint takes before its model, and holds
the socket: before the worker is up, and while it ends, connections hang in place of being refused. And importing
BentoML takes longer, and more memory, than everything else that an endpoint does before its first answer.
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
"""After SIGTERM, requests in flight have this long to be answered; new ones are refused at once."""


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
    """Load the model and make the app; before that there is nothing that listens."""
    # Here and not above: a wrong token is told at once.
    from serving.endpoint.setup import ENVIRONMENT, load_classifier, make_app

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    classifier = load_classifier()
    return make_app(lambda: classifier)


if __name__ == "__main__":
    main()
