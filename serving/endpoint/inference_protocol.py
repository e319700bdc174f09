"""The Open Inference Protocol (KServe's V2): the classifier as its clients, such as `tritonclient`, ask for it."""

from typing import TYPE_CHECKING

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from data.images.decode import DecodeError
from serving.endpoint.admission import Asks, Room
from serving.endpoint.answers import ModelInfo, ServerInfo
from serving.endpoint.middleware import Route
from serving.endpoint.request_body import content_type, read_body
from serving.endpoint.tensors import JSON_LENGTH, OUTPUTS, read_images, read_request, respond

if TYPE_CHECKING:
    from serving.endpoint.app import Handlers
    from serving.endpoint.classifier import Classifier

MODEL = "/v2/models/{name}"
MODELS = (MODEL, f"{MODEL}/versions/{{version}}")
"""Paths of the model."""
MEDIA_TYPES = ("", "application/json", "application/octet-stream")
"""Types of a request's body; `tritonclient` names none."""


class InferenceProtocol:
    """What the routes of the protocol do."""

    def __init__(self, handlers: "Handlers", max_images: int) -> None:
        """Answer by `handlers`; a request has at most `max_images`."""
        self._handlers, self._max_images = handlers, max_images

    def routes(self, images: Room) -> dict[str, Route]:
        """Give the routes, by path; predictions wait in the room `images`."""
        routes = {
            "/v2": Route("GET", self.server, is_protocol=True),
            "/v2/health/live": Route("GET", self.live, is_open=True, is_probe=True, is_protocol=True),
            "/v2/health/ready": Route("GET", self.ready, is_open=True, is_probe=True, is_protocol=True),
        }
        for path in MODELS:
            routes[path] = Route("GET", self.model, is_protocol=True)
            routes[f"{path}/ready"] = Route("GET", self.model_ready, is_protocol=True)
            routes[f"{path}/infer"] = Route("POST", self.infer, asks=Asks.IMAGES, room=images, is_protocol=True)
        return routes

    async def server(self, _request: Request) -> Response:
        """Answer what this server is."""
        info: ServerInfo = {"name": "convoy", "version": "1", "extensions": ["binary_tensor_data"]}
        return JSONResponse(info)

    async def live(self, _request: Request) -> Response:
        """Answer that the process lives."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Answer that the model is ready, as /readyz does."""
        await self._handlers.ready(request)
        return JSONResponse({"ready": True})

    async def model(self, request: Request) -> Response:
        """Answer which inputs the model takes, of which a request has one, and which outputs there are."""
        classifier = self._classifier(request)
        name, version = classifier.model_id["name"], classifier.model_id["version"]
        crop, num_classes = classifier.manifest.preprocessing.crop, len(classifier.manifest.classes)
        shapes = {"probabilities": [-1, num_classes], "label": [-1], "uncertain": [-1]}
        info: ModelInfo = {
            "name": name,
            "versions": [version] if version else [],
            "platform": classifier.platform,
            "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [-1]},
                {"name": "pixels", "datatype": "UINT8", "shape": [-1, crop, crop, 3]},
            ],
            "outputs": [{"name": name, "datatype": OUTPUTS[name], "shape": shape} for name, shape in shapes.items()],
        }
        return JSONResponse(info)

    async def model_ready(self, request: Request) -> Response:
        """Answer that the model of this name is ready."""
        classifier = self._classifier(request)
        await self._handlers.ready(request)
        return JSONResponse({"name": classifier.model_id["name"], "ready": True})

    async def infer(self, request: Request) -> Response:
        """Answer the probabilities of images; one that is refused fails them all, as the protocol has no other way."""
        classifier = self._classifier(request)
        _check_media_type(request)
        with self._handlers.inbox.hold() as hold:
            asked, tail = read_request(await read_body(request, hold), request.headers.get(JSON_LENGTH))
            asked.wanted()
            images = read_images(asked, tail, classifier.manifest.preprocessing.crop, self._max_images)
            outcomes = await self._handlers.predict_all(request, images)
        probabilities = []
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, DecodeError):
                raise type(outcome)(f"image {index}: {outcome}")
            probabilities.append(outcome)
        answers = [self._handlers.answer(classifier, each, top_k=1) for each in probabilities]
        outputs = {
            "probabilities": np.stack(probabilities),
            "label": np.array([answer["predictions"][0]["label"] for answer in answers]),
            "uncertain": np.array([answer["uncertain"] for answer in answers]),
        }
        return respond(asked, classifier.model_id, outputs)

    def _classifier(self, request: Request) -> "Classifier":
        """Give the classifier where it is the one whose name, and version, the path has."""
        classifier = self._handlers.classifier()
        name, version = classifier.model_id["name"], classifier.model_id["version"]
        if request.path_params["name"] != name or request.path_params.get("version", version) != version:
            raise HTTPException(404, "no such model is served here: GET /model says which one is")
        return classifier


def _check_media_type(request: Request) -> None:
    if content_type(request) not in MEDIA_TYPES:
        raise HTTPException(415, f"send application/json, or with {JSON_LENGTH} application/octet-stream")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "send the body without a Content-Encoding")
