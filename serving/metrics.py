import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.manifest import ModelManifest

OTHER = "other"
"""The route of every path that is not one of the app's: strangers try thousands, and each would be kept for ever."""
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Seconds."""


class Metrics:
    """Requests counted and timed by route, status, and the model that answers.

    In place of BentoML's own, which keep a histogram for every path that was ever asked for.
    """

    def __init__(self) -> None:
        # A registry of its own, so that one process can hold two apps.
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "convoy_requests_total",
            "Requests answered.",
            ("route", "status", "model", "version"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "convoy_request_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            ("route", "model", "version"),
            registry=self._registry,
            buckets=BUCKETS,
        )

    def record(self, route: str, status: int, seconds: float, manifest: ModelManifest | None) -> None:
        """Count one answered request."""
        model = (manifest.name, manifest.version or "") if manifest else ("", "")
        self._requests.labels(route, status, *model).inc()
        self._seconds.labels(route, *model).observe(seconds)

    def expose(self) -> bytes:
        """Write the metrics of all workers in Prometheus' text format."""
        workers = CollectorRegistry()
        try:
            # Gathers what the workers of `bentoml serve` left in the folder that it made for them.
            MultiProcessCollector(workers)  # type: ignore[no-untyped-call]
        except ValueError:
            # There is no such folder: this process is the only one.
            return generate_latest(self._registry)
        return generate_latest(workers)


class MeasureRequests:
    """ASGI middleware that records each HTTP request in `metrics`."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, routes: Collection[str], get_manifest: Callable[[], ModelManifest | None]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)
        self._get_manifest = get_manifest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; where no answer was sent, it counts as status 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, watch)
        finally:
            route = scope["path"] if scope["path"] in self._routes else OTHER
            self._metrics.record(route, status, time.perf_counter() - started, self._get_manifest())
