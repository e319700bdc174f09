"""The entry point of a Bento: BentoML imports this module from the Bento's own folder, to build it.

`bentoml serve` serves it too; `serving.endpoint.server` does so without BentoML, in two thirds of the memory.
"""

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.endpoint.setup import ENVIRONMENT, load_classifier, make_app, target

LIVE = "/livez"
"""Paths that BentoML answers in place of the app: it is not ready before it has made its service."""
REQUEST_SECONDS = 30
"""Longest time from the first byte of a request to its answer; longer than the app gives a body to arrive."""

app = make_app(lambda: bentoml.get_current_service().classifier)


@bentoml.service(
    workers=1,
    threads=target.threads,
    traffic={"timeout": REQUEST_SECONDS},
    # Neither spans nor a line for each request: they cost as much as the rest of a small request.
    tracing={"excluded_urls": ".*"},
    logging={"access": {"enabled": False}},
    # The app has its own, which do not grow with every path that a stranger tries.
    metrics={"enabled": False},
    envs=[{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
)
class ConvoyService:
    """Answers by `serving.endpoint.app`, but for /livez, which BentoML answers."""

    def __init__(self) -> None:
        self.classifier = load_classifier()

    async def __is_ready__(self) -> bool:
        """Whether the model was loaded and answered its golden image as it was measured."""
        return self.classifier is not None


class Shortcut:
    """ASGI middleware that leaves /livez to BentoML and gives all else to the app.

    Mounted, the app would be reached behind BentoML's own routes and their matching, which cost as much again as it
    does; and strangers would find some of them, such as /schema.json.
    """

    def __init__(self, bentoml_app: ASGIApp) -> None:
        self._bentoml_app = bentoml_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        is_ours = scope["type"] != "lifespan" and scope["path"] != LIVE
        await (app if is_ours else self._bentoml_app)(scope, receive, send)


# To mypy it is still the class that the decorator made a service of.
ConvoyService.add_asgi_middleware(Shortcut)  # type: ignore[attr-defined]
