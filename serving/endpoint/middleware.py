"""Handling of every request: token, route, metrics, and the form of errors."""

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from data.images.decode import DecodeError, TooLargeError
from serving.endpoint.access_log import AccessLog
from serving.endpoint.admission import OTHER, Asks, Quotas, Room, Visit
from serving.endpoint.answers import NOT_READY, Problem
from serving.endpoint.auth import Tokens
from serving.endpoint.batching import GoneError, OverloadedError
from serving.endpoint.metrics import ModelMetrics
from serving.endpoint.request_body import RETRY

ERRORS = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "too_many_requests",
    431: "headers_too_large",
    500: "internal_error",
    503: "overloaded",
}
"""Field `error` of a refusal, by status."""
VISIT = "convoy.visit"
"""Key of a request's `Visit` in the ASGI scope."""
NOSNIFF = (b"x-content-type-options", b"nosniff")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")

logger = logging.getLogger("convoy")


class NotReadyError(Exception):
    """No model is loaded. An endpoint in a container loads its model before it listens, so it will never have one."""


class Refusal(NamedTuple):
    """Status and reason of a refused request."""

    status: int
    problem: Problem
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Route:
    """Route of a path."""

    method: str
    answer: Callable[[Request], Awaitable[Response]]
    is_open: bool = False
    """whether requests need no token"""
    is_probe: bool = False
    """whether the operator sends the requests, which are not counted and not logged"""
    asks: Asks = Asks.NOTHING
    """what a request costs"""
    room: Room | None = None
    """queue in which requests wait"""
    is_protocol: bool = False
    """whether the route belongs to the Open Inference Protocol, whose refusals are `{"error": detail}`"""


class Front:
    """ASGI app that passes each request to its route. Refusals and failures become `{"error", "detail"}`.

    A table and one `try` replace Starlette's router and its layers of middleware. With metrics and tokens, they cost
    hardly more than Starlette's do without.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        tokens: Tokens,
        get_metrics: Callable[[], ModelMetrics],
        quotas: Quotas | None = None,
        log: AccessLog | None = None,
    ) -> None:
        """Answer at `routes`, whose paths may have parameters such as `{name}`.

        `get_metrics` returns the metrics of the current model. `log` gets a line for each request.
        """
        self.routes = routes
        self._patterns = {_pattern(path): path for path in routes if "{" in path}
        self._tokens, self._quotas, self._log = tokens, quotas, log
        self._get_metrics = get_metrics

    def admit(self, scope: Scope) -> Response | None:
        """Admit a request whose head has been read, or return the answer that refuses the request.

        A server that calls this before the body arrives need not read the bodies of refused requests. For other
        servers, this app calls it.
        """
        visit = scope[VISIT] = Visit(find_id(scope["headers"]), time.perf_counter())
        try:
            self._let_in(scope, visit)
        except Exception as error:
            response = self._explain(error, visit)
            self._leave(scope, visit, response.status_code)
            return response
        return None

    def refuse(self, error: HTTPException) -> Response:
        """Return the answer to an invalid request, and count the request."""
        visit = Visit(find_id(()), time.perf_counter())
        response = self._explain(error, visit)
        self._leave({"path": "", "method": ""}, visit, response.status_code)
        return response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer and count one request. A request that BentoML aborts counts as 504, BentoML's status for a timeout."""
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        if VISIT not in scope and (refusal := self.admit(scope)):
            await refusal(scope, receive, send)
            return
        visit, status = scope[VISIT], 504
        try:
            response = await self._respond(Request(scope, receive), visit)
            status = response.status_code
            await response(scope, receive, send)
        finally:
            self._leave(scope, visit, status)

    async def _respond(self, request: Request, visit: Visit) -> Response:
        try:
            response = await self.routes[visit.path].answer(request)
        except Exception as error:
            return self._explain(error, visit)
        milliseconds = 1000 * (time.perf_counter() - (visit.arrived_at or visit.started))
        response.raw_headers += (
            NOSNIFF,
            (b"x-request-id", visit.id),
            (b"server-timing", b"app;dur=%.1f" % milliseconds),
        )
        return response

    def _explain(self, error: Exception, visit: Visit) -> Response:
        refusal = explain(error)
        self._get_metrics().rejected(refusal.problem["error"])
        route = self.routes.get(visit.path)
        body = {"error": refusal.problem["detail"]} if route and route.is_protocol else refusal.problem
        response = JSONResponse(body, refusal.status, refusal.headers)
        response.raw_headers += (NOSNIFF, (b"x-request-id", visit.id))
        return response

    def _let_in(self, scope: Scope, visit: Visit) -> None:
        visit.path = self._find_path(scope)
        route = self.routes.get(visit.path)
        if self._tokens and not (route and route.is_open):
            visit.client = self._find_client(scope)
        if route is None:
            raise HTTPException(404, "nothing is here: POST an image to /classify, or GET /model")
        method = scope["method"]
        # The server omits the body of an answer to HEAD.
        if route.method != ("GET" if method == "HEAD" else method):
            raise HTTPException(405, f"{method[:20]} is not allowed here, but {route.method}", {"Allow": route.method})
        if self._quotas and visit.client is not None:
            self._quotas.check(visit, route.asks)
        if route.room:
            route.room.enter(visit)

    def _find_path(self, scope: Scope) -> str:
        """Return the path of the route, and store path parameters in the scope."""
        path: str = scope["path"]
        if path in self.routes:
            return path
        for pattern, found in self._patterns.items():
            if parts := pattern.fullmatch(path):
                scope["path_params"] = parts.groupdict()
                return found
        return OTHER

    def _find_client(self, scope: Scope) -> str:
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        client = self._tokens.find(authorization)
        if client is None:
            detail = "send one of this endpoint's tokens, as the header `Authorization: Bearer TOKEN`"
            raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})
        return client

    def _leave(self, scope: Scope, visit: Visit, status: int) -> None:
        visit.leave()
        seconds = time.perf_counter() - visit.started
        route = self.routes.get(visit.path)
        if route and route.is_probe:
            return
        metrics = self._get_metrics()
        metrics.answered(visit.path, status, seconds)
        if visit.client is not None:
            metrics.asked(visit.client, status, visit.num_images)
        if self._log:
            self._log.write(scope, visit, status, seconds)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))


def find_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the request id: the client's if it is well-formed, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(16).encode()


def explain(error: Exception) -> Refusal:
    """Convert an error to a refusal. Unexpected errors are logged, and the client gets no details."""
    match error:
        case HTTPException():
            return Refusal(error.status_code, _problem(error.status_code, error.detail), error.headers)
        case NotReadyError():
            detail = "no model is ready: the endpoint's log says why"
            return Refusal(503, {"error": NOT_READY, "detail": detail}, RETRY)
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
