"""What every request passes, on its way in and out: the token, the route, the metrics, and the form of errors."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from data.decode import DecodeError, TooLargeError
from serving.answers import Problem
from serving.auth import Tokens
from serving.batching import GoneError, OverloadedError
from serving.body import RETRY
from serving.metrics import ModelMetrics

ERRORS = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    500: "internal_error",
    503: "overloaded",
}
"""The field `error` of a refusal, by its status."""
OTHER = "other"
"""The route of every path that is not one of the app's: strangers try thousands, and each would be kept for ever."""

logger = logging.getLogger("convoy")


class NotReadyError(Exception):
    """No model is loaded, or not yet."""


class Refusal(NamedTuple):
    """Why there is no answer."""

    status: int
    problem: Problem
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Route:
    """What answers at a path."""

    method: str
    answer: Callable[[Request], Awaitable[Response]]
    is_open: bool = False
    """whether it needs no token"""


class Front:
    """The ASGI app: gives each request to its route; what is refused, or fails, becomes `{"error", "detail"}`.

    A table and one `try` in place of Starlette's router and its layers of middleware: with metrics and tokens it costs
    a request hardly more than those do without.
    """

    def __init__(self, routes: Mapping[str, Route], tokens: Tokens, get_metrics: Callable[[], ModelMetrics]) -> None:
        self.routes = routes
        self._tokens = tokens
        self._get_metrics = get_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and count it; one that took too long, and is broken off by BentoML, as its 504."""
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        started = time.perf_counter()
        request = Request(scope, receive)
        path, status = scope["path"], 504
        try:
            response = await self._respond(request, path)
            status = response.status_code
            await response(scope, receive, send)
        finally:
            route = path if path in self.routes else OTHER
            self._get_metrics().answered(route, status, time.perf_counter() - started)

    async def _respond(self, request: Request, path: str) -> Response:
        try:
            return await self._find(request, path).answer(request)
        except Exception as error:
            refusal = explain(error)
            self._get_metrics().rejected(refusal.problem["error"])
            return JSONResponse(refusal.problem, refusal.status, refusal.headers)

    def _find(self, request: Request, path: str) -> Route:
        route = self.routes.get(path)
        if self._tokens and not (route and route.is_open):
            self._check_token(request)
        if route is None:
            raise HTTPException(404, "nothing is here: POST an image to /classify, or GET /model")
        # Of the answer to HEAD the server leaves out the body.
        if route.method != ("GET" if request.method == "HEAD" else request.method):
            detail = f"{request.method[:20]} is not allowed here, but {route.method}"
            raise HTTPException(405, detail, {"Allow": route.method})
        return route

    def _check_token(self, request: Request) -> None:
        if not self._tokens.admits(request.headers.get("authorization")):
            detail = "send one of this endpoint's tokens, as the header `Authorization: Bearer TOKEN`"
            raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})


def explain(error: Exception) -> Refusal:
    """Put an error into words for whoever sent the request; of one not foreseen nothing is told, the log has it."""
    match error:
        case HTTPException():
            return Refusal(error.status_code, _problem(error.status_code, error.detail), error.headers)
        case NotReadyError():
            detail = "no model is ready: the endpoint's log says why"
            return Refusal(503, {"error": "not_ready", "detail": detail}, RETRY)
        case OverloadedError():
            return Refusal(503, _problem(503, str(error)), RETRY)
        case GoneError():
            return Refusal(400, _problem(400, str(error)))
        case TooLargeError():
            return Refusal(413, _problem(413, str(error)))
        case DecodeError():
            return Refusal(400, _problem(400, str(error)))
    logger.error("a request failed", exc_info=error)
    return Refusal(500, _problem(500, "the endpoint failed: its log says why"))


def _problem(status: int, detail: str) -> Problem:
    return {"error": ERRORS[status], "detail": detail}
