from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import anyio
import anyio.to_thread
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from data.decode import DecodeError, TooLargeError
from models.manifest import ModelManifest
from serving.config import ServingConfig
from serving.metrics import MeasureRequests, Metrics

if TYPE_CHECKING:
    # BentoML's supervisor imports the app too, and never predicts.
    from serving.classifier import Classifier

READ_SECONDS = 20
"""A body that takes longer is refused: connections that trickle must not pile up."""
FIELD = "image"
"""The part of a multipart form that holds the file."""
ERRORS = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    500: "internal_error",
    503: "not_ready",
}


@dataclass(frozen=True)
class AppState:
    """What the routes work with."""

    get_classifier: Callable[[], "Classifier | None"]
    top_k: int
    max_body: int
    """bytes"""
    limiter: anyio.CapacityLimiter
    metrics: Metrics

    def classifier(self) -> "Classifier":
        """Give the loaded model; refuse with 503 as long as there is none."""
        classifier = self.get_classifier()
        if classifier is None:
            raise HTTPException(503, "no model is ready: the endpoint's log says why")
        return classifier

    def manifest(self) -> ModelManifest | None:
        """Give the manifest of the loaded model, if there is one."""
        classifier = self.get_classifier()
        return classifier.manifest if classifier else None


def create_app(get_classifier: Callable[[], "Classifier | None"], config: ServingConfig, *, threads: int) -> Starlette:
    """Make the app that answers /classify, /model and /metrics; every error is JSON, `{"error", "detail"}`.

    `get_classifier` is asked at each request and gives None as long as no model is ready. At most `threads` requests
    are decoded and predicted at the same time.
    """
    state = AppState(
        get_classifier=get_classifier,
        top_k=config.top_k,
        max_body=int(config.max_body_mb * 1_000_000),
        limiter=anyio.CapacityLimiter(threads),
        metrics=Metrics(),
    )
    routes = [Route("/classify", Classify), Route("/model", Model), Route("/metrics", Scrape)]
    measure = Middleware(
        MeasureRequests, metrics=state.metrics, routes=[route.path for route in routes], get_manifest=state.manifest
    )
    app = Starlette(
        # The last route keeps unknown paths from falling through to the pages of what this app is mounted in.
        routes=[*routes, Route("/{path:path}", Unknown)],
        middleware=[measure],
        exception_handlers={HTTPException: refuse, DecodeError: refuse, Exception: refuse},
    )
    app.state.app_state = state
    return app


class Classify(HTTPEndpoint):
    """The field `image` of a form, or a body of type image/* or application/octet-stream, to the likeliest classes."""

    async def post(self, request: Request) -> Response:
        """Answer 200 with an `Answer`; the query `top_k` asks for more or fewer classes than configured."""
        state = _state(request)
        classifier = state.classifier()
        top_k = _read_top_k(request, state.top_k)
        image = await _read_image(request, state.max_body)
        # Neither Pillow nor onnxruntime may hold up the event loop, which answers the probes.
        answer = await anyio.to_thread.run_sync(classifier.classify, image, top_k, limiter=state.limiter)
        return JSONResponse(answer)


class Model(HTTPEndpoint):
    """Which model answers here, and all that is known of it."""

    async def get(self, request: Request) -> Response:
        """Answer 200 with the manifest, less the bytes of its golden image."""
        manifest = _state(request).classifier().manifest
        return JSONResponse(manifest.model_dump(mode="json", exclude={"golden": {"image"}}))


class Scrape(HTTPEndpoint):
    """The metrics of all workers."""

    def get(self, request: Request) -> Response:
        """Answer 200 in Prometheus' text format."""
        return Response(_state(request).metrics.expose(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class Unknown(HTTPEndpoint):
    """Every other path, whatever the method."""

    async def dispatch(self) -> None:
        """Refuse with 404."""
        raise HTTPException(404, "nothing is here: POST an image to /classify, or GET /model")


async def refuse(request: Request, error: Exception) -> Response:
    """Turn what a route raised into JSON; of what was not foreseen nothing is told, the log has the traceback."""
    headers = error.headers if isinstance(error, HTTPException) else None
    match error:
        case HTTPException(status_code=405):
            status, detail = 405, f"{request.method} is not allowed here, but {(headers or {}).get('Allow')}"
        case HTTPException():
            status, detail = error.status_code, error.detail
        case TooLargeError():
            status, detail = 413, str(error)
        case DecodeError():
            status, detail = 400, str(error)
        case _:
            status, detail = 500, "the endpoint failed: its log says why"
    return JSONResponse({"error": ERRORS[status], "detail": detail}, status, headers)


def _state(request: Request) -> AppState:
    return cast(AppState, request.app.state.app_state)


def _read_top_k(request: Request, default: int) -> int:
    text = request.query_params.get("top_k")
    if text is None:
        return default
    # A class more than any network has; a longer number would only be cut down to the number of classes later.
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise HTTPException(422, "top_k must be a whole number of at least 1")
    return int(text)


async def _read_image(request: Request, max_body: int) -> bytes:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = content_type == "multipart/form-data"
    if not (is_form or content_type.startswith("image/") or content_type == "application/octet-stream"):
        raise HTTPException(
            415,
            "send the image as the body, with its type (image/*) or application/octet-stream, or as the field "
            f"`{FIELD}` of multipart/form-data",
        )
    try:
        with anyio.fail_after(READ_SECONDS):
            body = _bounded(request, max_body)
            image = await _read_form(request, body, max_body) if is_form else b"".join([chunk async for chunk in body])
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {READ_SECONDS} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection was closed before the body was complete") from None
    if not image:
        raise HTTPException(400, "the image is empty")
    return image


async def _bounded(request: Request, max_body: int) -> AsyncGenerator[bytes]:
    """Give the body in pieces; refuse with 413 by its announced length, or when more than `max_body` bytes came."""
    too_large = HTTPException(413, f"the body is larger than {max_body:,} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:19]) > max_body:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_body:
            raise too_large
        yield chunk


async def _read_form(request: Request, body: AsyncGenerator[bytes], max_body: int) -> bytes:
    parser = MultiPartParser(request.headers, body, max_files=1, max_fields=16)
    # Never to disk: the body is bounded, and the file system of an endpoint may be read-only.
    parser.spool_max_size = max_body
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"malformed form: {error.message}") from None
    try:
        image = form.get(FIELD)
        if not isinstance(image, UploadFile):
            raise HTTPException(422, f"the form has no file in its field `{FIELD}`")
        return await image.read()
    finally:
        await form.close()
