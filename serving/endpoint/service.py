"""The entry point of a Bento: BentoML imports this module from the Bento's own folder, to build it.

`bentoml serve` serves it too; `serving.endpoint.server` does so without BentoML, in two thirds of the memory.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import bentoml
from bentoml.exceptions import ServiceUnavailable
from bentoml.validators import ContentType
from pydantic import Field
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import TypedDict

from core.errors import UserError
from data.images.decode import DecodeError
from serving.endpoint.answers import Answer, Explanation, ModelId, Prediction
from serving.endpoint.app import explain_image
from serving.endpoint.auth import ALLOW_ANONYMOUS, read_tokens, require_protection
from serving.endpoint.middleware import explain
from serving.endpoint.openapi import MAX_TOP_K
from serving.endpoint.setup import ENVIRONMENT, config, load_classifier, make_app, target

if TYPE_CHECKING:
    from serving.endpoint.classifier import Classifier

LIVE = "/livez"
"""Path that BentoML answers in place of the app: it is not ready before it has made its service."""
REQUEST_SECONDS = 30
"""Longest time from the first byte of a request to its answer; longer than the app gives a body to arrive."""

Image = Annotated[Path, ContentType("image/*")]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)] | None


class Outcome(TypedDict, total=False):
    """Predictions or a Problem; BentoML's clients know no choice between the two."""

    predictions: list[Prediction]
    uncertain: bool
    error: str
    detail: str


class Outcomes(TypedDict):
    """What came of each image of a batch, in the order in which they were sent."""

    results: list[Outcome]
    model: ModelId


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
    """An image classifier.

    The methods describe the interface to BentoML's clients, and can be called in this process. Over HTTP, all but
    /livez is answered by `serving.endpoint.app`, with its tokens and limits, at the same paths and with the same forms.
    """

    def __init__(self) -> None:
        self.classifier = load_classifier()

    async def __is_ready__(self) -> bool:
        """Whether the model was loaded and answered its golden image as it was measured."""
        return self.classifier is not None

    @bentoml.api(route="/classify")  # type: ignore[untyped-decorator]
    def classify(self, image: Image, top_k: TopK = None) -> Answer:
        """Classify an image; `top_k` asks for more or fewer classes than configured."""
        return self._model().classify(image.read_bytes(), top_k or config.top_k)

    @bentoml.api(route="/classify/batch")  # type: ignore[untyped-decorator]
    def classify_batch(self, images: list[Image], top_k: TopK = None) -> Outcomes:
        """Classify many images; one that is refused has a Problem in its place."""
        model = self._model()
        results = [_classify(model, image.read_bytes(), top_k or config.top_k) for image in images]
        return {"results": results, "model": model.model_id}

    @bentoml.api(route="/explain")  # type: ignore[untyped-decorator]
    def explain(self, image: Image, label: str | None = None) -> Explanation:
        """Show where in an image the evidence for a class is; by default, for the likeliest one."""
        return explain_image(self._model(), image.read_bytes(), label)

    def _model(self) -> "Classifier":
        if self.classifier is None:
            raise ServiceUnavailable("no model is ready: the log says why")
        return self.classifier


def _classify(model: "Classifier", image: bytes, top_k: int) -> Outcome:
    try:
        answer = model.classify(image, top_k)
    except DecodeError as error:
        problem = explain(error).problem
        return {"error": problem["error"], "detail": problem["detail"]}
    return {"predictions": answer["predictions"], "uncertain": answer["uncertain"]}


class Shortcut:
    """ASGI middleware that leaves /livez to BentoML and gives all else to the app.

    Mounted, the app would be reached behind BentoML's own routes and their matching, which cost as much again as it
    does; and BentoML's routes for the methods above read a body of any size before they ask who sent it.
    """

    def __init__(self, bentoml_app: ASGIApp) -> None:
        self._bentoml_app = bentoml_app
        self._tokens = read_tokens(os.environ)
        self._allow_anonymous = os.environ.get(ALLOW_ANONYMOUS, "").lower() == "true"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "lifespan" or scope["path"] == LIVE:
            await self._bentoml_app(scope, receive, send)
        elif scope["type"] == "http" and (fault := self._find_fault(scope)):
            await JSONResponse({"error": "unauthorized", "detail": fault}, 401)(scope, receive, send)
        else:
            await app(scope, receive, send)

    def _find_fault(self, scope: Scope) -> str | None:
        """Say why an endpoint without tokens may not answer on this address; BentoML listens on all by default."""
        address, port = scope.get("server") or ("", None)
        if port is None:  # a socket in the file system
            return None
        try:
            require_protection(address, self._tokens, allow_anonymous=self._allow_anonymous)
        except UserError as error:
            return str(error)
        return None


# To mypy it is still the class that the decorator made a service of.
ConvoyService.add_asgi_middleware(Shortcut)  # type: ignore[attr-defined]
