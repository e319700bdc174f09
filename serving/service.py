"""The entry point of a Bento: BentoML imports this module from the Bento's own folder, to build and to serve it."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from data.errors import UserError
from serving.app import create_app
from serving.auth import read_tokens
from serving.batching import Limits
from serving.config import ServingConfig
from serving.packing import PACKING_FILE, Packing
from serving.targets import RUNTIMES, TARGETS

if TYPE_CHECKING:
    from serving.classifier import Classifier

REQUEST_SECONDS = 30
"""Longest time from the first byte of a request to its answer; longer than the app gives a body to arrive."""
PROBES = ("/livez", "/readyz")

logger = logging.getLogger("convoy")

# BentoML wants its settings when the class below is made, so they are read at import, here and nowhere else. The model
# is loaded later, by the process that answers requests.
FOLDER = Path(__file__).resolve().parents[1]
config = ServingConfig.model_validate_json((FOLDER / "serving.json").read_text(encoding="utf-8"))
packing = Packing.model_validate_json((FOLDER / PACKING_FILE).read_text(encoding="utf-8"))
target = TARGETS[config.target]
config = config.model_copy(update={"max_body_mb": min(config.max_body_mb, target.max_body_mb)})
tokens = read_tokens(os.environ)
limits = Limits(packing.max_batch, target.threads, config.max_queue, config.deadline_seconds)
app = create_app(lambda: bentoml.get_current_service().classifier, config, limits=limits, tokens=tokens)


@bentoml.service(
    workers=1,
    threads=target.threads,
    traffic={"timeout": REQUEST_SECONDS},
    # Neither spans nor a line for each request: they cost as much as the rest of a small request.
    tracing={"excluded_urls": ".*"},
    logging={"access": {"enabled": False}},
    # The app has its own, which do not grow with every path that a stranger tries.
    metrics={"enabled": False},
    # BentoML and onnxruntime both report their use to their makers unless told otherwise.
    envs=[{"name": "BENTOML_DO_NOT_TRACK", "value": "true"}, {"name": "ORT_DISABLE_TELEMETRY", "value": "1"}],
)
class ConvoyService:
    """Answers by `serving.app`, but for /livez and /readyz, which BentoML answers."""

    def __init__(self) -> None:
        self.classifier = load_classifier()

    async def __is_ready__(self) -> bool:
        """Whether the model was loaded and answered its golden image as it was measured."""
        return self.classifier is not None


class Shortcut:
    """ASGI middleware that leaves the probes to BentoML and gives all else to the app.

    Mounted, the app would be reached behind BentoML's own routes and their matching, which cost as much again as it
    does; and strangers would find some of them, such as /schema.json.
    """

    def __init__(self, bentoml_app: ASGIApp) -> None:
        self._bentoml_app = bentoml_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        is_ours = scope["type"] != "lifespan" and scope["path"] not in PROBES
        await (app if is_ours else self._bentoml_app)(scope, receive, send)


# To mypy it is still the class that the decorator made a service of.
ConvoyService.add_asgi_middleware(Shortcut)  # type: ignore[attr-defined]


def load_classifier() -> "Classifier | None":
    """Load the model; where that fails log why, and leave an endpoint that lives but is never ready.

    An error raised here would have BentoML start the worker again and again, and nobody would see a reason.
    """
    # Here and not above: `bentoml build` imports this module too, and can do without onnxruntime.
    from serving.classifier import Classifier

    try:
        return Classifier(
            FOLDER / "model", RUNTIMES[packing.precision], num_threads=target.num_cores, decoding_mb=target.decoding_mb
        )
    except UserError as error:
        logger.critical("the model cannot be served: %s", error)
    except Exception:
        logger.exception("the model cannot be served")
    return None
