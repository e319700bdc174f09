import contextlib
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from data.images.decode import DecodeError, Pixels
from models.exported.saliency import weigh_evidence
from serving.config import ServingConfig
from serving.endpoint.access_log import AccessLog
from serving.endpoint.admission import Asks, Quotas, Room, Visit
from serving.endpoint.answers import Answer, BatchAnswer, Examples, Explanation, Predictions, Problem
from serving.endpoint.auth import Tokens
from serving.endpoint.batching import Answers as Probabilities
from serving.endpoint.batching import Batcher, Limits, OverloadedError
from serving.endpoint.inference_protocol import InferenceProtocol
from serving.endpoint.metrics import Metrics, ModelMetrics
from serving.endpoint.middleware import VISIT, Front, NotReadyError, Route, explain
from serving.endpoint.openapi import MAX_TOP_K, describe_api
from serving.endpoint.page import page_routes
from serving.endpoint.request_body import Inbox, read_image, read_images

if TYPE_CHECKING:
    # `bentoml build` imports the app too, and never predicts.
    from serving.endpoint.classifier import Classifier

EXPLANATIONS = 5
"""Explanations that are worked on or wait for their turn: each is fifty predictions."""


def create_app(
    get_classifier: Callable[[], "Classifier | None"],
    config: ServingConfig,
    *,
    limits: Limits,
    tokens: Tokens,
    examples: Examples | None = None,
    schema: bytes = b"{}",
) -> Front:
    """Make the ASGI app that answers images, and says of itself all there is to know; every error is a `Problem`.

    `get_classifier` is asked at each request and gives None as long as no model is ready. Within `limits`
    they are decoded and predicted. Where there are `tokens`, only the page and the metrics do without one. The page
    offers the `examples` to click. `schema` is what BentoML's clients ask for, in JSON.
    """
    # Made when it is asked for: most endpoints never are, and keep less memory.
    describe = functools.cache(lambda: describe_api(config, tokens))
    handlers = Handlers(get_classifier, config, limits, describe, examples or {"examples": []}, schema)
    images = Room("images", handlers.num_images, limits.max_queue)
    protocol = InferenceProtocol(handlers, config.max_batch_images)
    explanations = Room("explanations", handlers.num_explanations, EXPLANATIONS)
    routes = {
        "/classify": Route("POST", handlers.classify, asks=Asks.IMAGES, room=images),
        "/classify/batch": Route("POST", handlers.classify_batch, asks=Asks.IMAGES, room=images),
        "/explain": Route("POST", handlers.explain, asks=Asks.EXPLANATION, room=explanations),
        "/livez": Route("GET", handlers.live, is_open=True, is_probe=True),
        "/readyz": Route("GET", handlers.ready, is_open=True, is_probe=True),
        "/model": Route("GET", handlers.model),
        "/examples": Route("GET", handlers.examples),
        "/openapi.json": Route("GET", handlers.describe),
        "/schema.json": Route("GET", handlers.schema),
        "/metrics": Route("GET", handlers.scrape, is_open=True),
        **protocol.routes(images),
        **page_routes(),
    }
    log = AccessLog(sys.stdout) if config.access_log else None
    return Front(routes, tokens, handlers.metrics, Quotas(config), log)


class Handlers:
    """What the routes do."""

    def __init__(
        self,
        get_classifier: Callable[[], "Classifier | None"],
        config: ServingConfig,
        limits: Limits,
        describe_api: Callable[[], dict[str, Any]],
        examples: Examples,
        schema: bytes,
    ) -> None:
        self._get_classifier = get_classifier
        self._config = config
        self._describe_api, self._examples, self._schema = describe_api, examples, schema
        self.inbox = Inbox(int(config.max_body_mb * 1_000_000))
        self._batcher = Batcher(
            self._decode_small,
            lambda image: self.classifier().decode(image),
            lambda pixels: self.classifier().predict_sent(pixels),
            limits,
            lambda size, waits: self.metrics().batched(size, waits),
        )
        # One at a time, beside the predictions and not in their place.
        self._explainer = anyio.CapacityLimiter(1)
        self._explaining = 0
        self._metrics = Metrics()

    def metrics(self) -> ModelMetrics:
        """Give the metrics of the model that answers."""
        classifier = self._get_classifier()
        return self._metrics.of(classifier.manifest if classifier else None)

    def num_images(self) -> int:
        """Give the number of images that are decoded, predicted or wait."""
        return self._batcher.in_flight

    def num_explanations(self) -> int:
        """Give the number of explanations that are worked on or wait."""
        return self._explaining

    async def live(self, _request: Request) -> Response:
        """Answer that the process lives."""
        return Response()

    async def ready(self, _request: Request) -> Response:
        """Answer that the model has passed its test and that its threads get on with their images."""
        self.classifier()
        if self._batcher.is_stalled:
            raise OverloadedError("an image has taken longer than the deadline: others wait for it")
        return Response()

    async def classify(self, request: Request) -> Response:
        """Answer the classes of one image; the query `top_k` asks for more or fewer of them than configured."""
        classifier = self.classifier()
        top_k = _read_top_k(_query(request, "top_k"), self._config.top_k)
        with self.inbox.hold() as hold:
            (image,), parameters = await read_image(request, hold)
            top_k = _read_top_k(_unquote(parameters.get("top_k")), top_k)
            _visit(request).arrived()
            # Neither Pillow nor onnxruntime may hold up the event loop, which answers the probes.
            probabilities = await self._batcher.predict(image, lambda: _closed(request))
        return JSONResponse(self.answer(classifier, probabilities, top_k))

    async def classify_batch(self, request: Request) -> Response:
        """Answer the classes of many images, in their order; one that is refused does not fail the others."""
        classifier = self.classifier()
        top_k = _read_top_k(_query(request, "top_k"), self._config.top_k)
        with self.inbox.hold() as hold:
            images, parameters = await read_images(request, hold, self._config.max_batch_images)
            top_k = _read_top_k(_unquote(parameters.get("top_k")), top_k)
            outcomes = await self.predict_all(request, images)
        results = [self._result(classifier, outcome, top_k) for outcome in outcomes]
        answer: BatchAnswer = {"results": results, "model": classifier.model_id}
        return JSONResponse(answer)

    async def predict_all(
        self, request: Request, images: Sequence[bytes | Pixels]
    ) -> list[Probabilities | DecodeError]:
        """Predict the images of a request whose body has been read."""
        _visit(request).arrived(len(images))
        return await self._batcher.predict_all(images, lambda: _closed(request))

    async def explain(self, request: Request) -> Response:
        """Answer where in an image the evidence is; the query `label` asks for another class than the likeliest."""
        classifier = self.classifier()
        label = _check_label(_query(request, "label"), classifier)
        with self.inbox.hold() as hold:
            (image,), parameters = await read_image(request, hold)
            label = _check_label(_unquote(parameters.get("label")), classifier) or label
            _visit(request).arrived()
            if self._explaining >= EXPLANATIONS:
                raise OverloadedError("too many explanations at once: try again in a moment")
            self._explaining += 1
            try:
                explanation = await anyio.to_thread.run_sync(
                    explain_image, classifier, image, label, limiter=self._explainer
                )
            finally:
                self._explaining -= 1
        return JSONResponse(explanation)

    async def model(self, _request: Request) -> Response:
        """Answer the manifest of the model, less the bytes of its golden image."""
        manifest = self.classifier().manifest
        return JSONResponse(manifest.model_dump(mode="json", exclude={"golden": {"image"}}))

    async def examples(self, _request: Request) -> Response:
        """Answer the test images that the page offers."""
        return JSONResponse(self._examples)

    async def describe(self, _request: Request) -> Response:
        """Answer the description of this interface."""
        return JSONResponse(self._describe_api())

    async def schema(self, _request: Request) -> Response:
        """Answer BentoML's description of this interface, which its clients read."""
        return Response(self._schema, media_type="application/json")

    async def scrape(self, _request: Request) -> Response:
        """Answer the metrics in Prometheus' text format."""
        return Response(await anyio.to_thread.run_sync(self._metrics.expose), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def classifier(self) -> "Classifier":
        """Give the model that answers.

        Raises:
            NotReadyError: there is none.

        """
        classifier = self._get_classifier()
        if classifier is None:
            raise NotReadyError
        return classifier

    def _decode_small(self, image: bytes) -> Pixels | None:
        if not image:
            raise DecodeError("the image is empty")
        return self.classifier().decode_small(image)

    def answer(self, classifier: "Classifier", probabilities: Probabilities, top_k: int) -> Answer:
        """Put the probabilities of one image [num_classes] into an answer, and count it."""
        answer = classifier.answer(probabilities, top_k)
        self._metrics.of(classifier.manifest).predicted(
            answer["predictions"][0]["probability"], uncertain=answer["uncertain"]
        )
        return answer

    def _result(
        self, classifier: "Classifier", outcome: Probabilities | DecodeError, top_k: int
    ) -> Predictions | Problem:
        if not isinstance(outcome, DecodeError):
            answer = self.answer(classifier, outcome, top_k)
            return {"predictions": answer["predictions"], "uncertain": answer["uncertain"]}
        problem = explain(outcome).problem
        self._metrics.of(classifier.manifest).rejected(problem["error"])
        return problem


def _visit(request: Request) -> Visit:
    visit: Visit = request.scope[VISIT]
    return visit


async def _closed(request: Request) -> None:
    """Wait until the client closes the connection; of its request nothing is left to be read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def explain_image(classifier: "Classifier", image: bytes, label: str | None) -> Explanation:
    """Explain the bytes of an image file; None stands for the likeliest class.

    Raises:
        DecodeError: these bytes are no usable image.

    """
    pixels = classifier.decode(image)
    (probabilities,) = classifier.predict(pixels[None])
    index = int(probabilities.argmax()) if label is None else classifier.manifest.classes.index(label)
    evidence = weigh_evidence(classifier.predict, pixels, index)
    preprocessing = classifier.manifest.preprocessing
    return {
        "label": classifier.manifest.classes[index],
        "probability": float(probabilities[index]),
        "evidence": evidence.round(4).tolist(),
        "crop": preprocessing.crop / preprocessing.size,
        "model": classifier.model_id,
    }


def _query(request: Request, name: str) -> str | None:
    return request.query_params.get(name) if request.scope["query_string"] else None


def _unquote(text: str | None) -> str | None:
    """Give the text of a form's field, which BentoML's clients write as JSON: `"cat"`, or `null` for none."""
    if text == "null":
        return None
    if text and text.startswith('"'):
        with contextlib.suppress(ValueError):
            return str(json.loads(text))
    return text


def _check_label(label: str | None, classifier: "Classifier") -> str | None:
    if label is not None and label not in classifier.manifest.classes:
        raise HTTPException(422, "label must be one of the model's classes: GET /model lists them")
    return label


def _read_top_k(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_TOP_K):
        raise HTTPException(422, f"top_k must be a whole number from 1 to {MAX_TOP_K}")
    return int(text)
