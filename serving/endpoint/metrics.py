from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from models.exported.manifest import ModelManifest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
"""Upper bounds of the histograms' buckets."""

MAX_TOKENS = 100
"""Maximum number of token names with their own counters. All other tokens are counted together."""
OTHER_TOKENS = "other"

MODEL = ("model", "version")
"""Labels of every metric."""


class Metrics:
    """Prometheus metrics, labelled by model.

    BentoML's own metrics keep a histogram for every path that was ever requested. Here, every label has few values: the
    app's routes, its statuses and reasons, and one model per process.
    """

    def __init__(self) -> None:
        # A separate registry, so that one process can hold two apps.
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "convoy_requests_total", "Requests answered.", ("route", "status", *MODEL), registry=self.registry
        )
        self.rejections = Counter(
            "convoy_rejections_total",
            "Requests, and images of a batch, that were refused.",
            ("reason", *MODEL),
            registry=self.registry,
        )
        self.token_requests = Counter(
            "convoy_token_requests_total",
            "Requests answered, by the name of their token.",
            ("token", "status", *MODEL),
            registry=self.registry,
        )
        self.token_images = Counter(
            "convoy_token_images_total",
            "Images received, by the name of their token.",
            ("token", *MODEL),
            registry=self.registry,
        )
        self.seconds = self._histogram(
            "convoy_request_seconds", "Seconds from a request's first byte to its answer's last.", SECONDS, "route"
        )
        self.queue_seconds = self._histogram(
            "convoy_queue_wait_seconds", "Seconds that a decoded image waited for the model.", SECONDS
        )
        self.batch_size = self._histogram("convoy_batch_size", "Images predicted together.", BATCH_SIZES)
        self.confidence = self._histogram(
            "convoy_confidence", "Probability of the likeliest class of an image.", CONFIDENCES
        )
        self.uncertain = Counter(
            "convoy_uncertain_total", "Answers that were uncertain.", MODEL, registry=self.registry
        )
        self._of_model: tuple[ModelManifest | None, ModelMetrics] = (None, ModelMetrics(self, None))

    def of(self, manifest: ModelManifest | None) -> "ModelMetrics":
        """Return the metrics of a model. Without a model, name and version are empty."""
        if self._of_model[0] is not manifest:
            self._of_model = (manifest, ModelMetrics(self, manifest))
        return self._of_model[1]

    def expose(self) -> bytes:
        """Write the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, meaning, (*labels, *MODEL), registry=self.registry, buckets=buckets)


class ModelMetrics:
    """Metrics of one model, bound to their labels once, because looking them up for each request is slow."""

    def __init__(self, metrics: Metrics, manifest: ModelManifest | None) -> None:
        self._metrics = metrics
        self._model = (manifest.name, manifest.version or "") if manifest else ("", "")
        self._answers: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._rejections: dict[str, Counter] = {}
        self._clients: dict[tuple[str, int], tuple[Counter, Counter]] = {}
        if manifest:
            self._queue_seconds = metrics.queue_seconds.labels(*self._model)
            self._batch_size = metrics.batch_size.labels(*self._model)
            self._confidence = metrics.confidence.labels(*self._model)
            self._uncertain = metrics.uncertain.labels(*self._model)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        requests, durations = self._answers.get((route, status)) or self._bind(route, status)
        requests.inc()
        durations.observe(seconds)

    def rejected(self, reason: str) -> None:
        """Count a request, or one image of a batch, that was refused."""
        if reason not in self._rejections:
            self._rejections[reason] = self._metrics.rejections.labels(reason, *self._model)
        self._rejections[reason].inc()

    def asked(self, token: str, status: int, num_images: int) -> None:
        """Count one request and its images for the name of its token."""
        requests, images = self._clients.get((token, status)) or self._bind_client(token, status)
        requests.inc()
        if num_images:
            images.inc(num_images)

    def batched(self, size: int, waits: Iterable[float]) -> None:
        """Count one run of the model, over `size` images that waited `waits` seconds."""
        self._batch_size.observe(size)
        for seconds in waits:
            self._queue_seconds.observe(seconds)

    def predicted(self, confidence: float, *, uncertain: bool) -> None:
        """Count one answer, by the probability of its likeliest class, and whether it was uncertain."""
        self._confidence.observe(confidence)
        if uncertain:
            self._uncertain.inc()

    def _bind_client(self, token: str, status: int) -> tuple[Counter, Counter]:
        names = {name for name, _ in self._clients}
        # Tokens may disappear from the file, but counters stay.
        name = token if token in names or len(names) < MAX_TOKENS else OTHER_TOKENS
        bound = (
            self._metrics.token_requests.labels(name, status, *self._model),
            self._metrics.token_images.labels(name, *self._model),
        )
        self._clients[name, status] = bound
        return bound

    def _bind(self, route: str, status: int) -> tuple[Counter, Histogram]:
        bound = (
            self._metrics.requests.labels(route, status, *self._model),
            self._metrics.seconds.labels(route, *self._model),
        )
        self._answers[route, status] = bound
        return bound
