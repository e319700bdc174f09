"""The description of the interface. BentoML describes its own methods only, and nothing that is mounted beside them."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import TypeAdapter

from serving.config import ServingConfig
from serving.endpoint.answers import (
    Answer,
    BatchAnswer,
    Examples,
    Explanation,
    InferenceAnswer,
    InferenceProblem,
    ModelInfo,
    Problem,
    ServerInfo,
)
from serving.endpoint.auth import Tokens
from serving.endpoint.request_body import FIELD
from serving.endpoint.tensors import JSON_LENGTH, InferenceRequest

Document = dict[str, Any]

MAX_TOP_K = 999_999_999
"""More classes than any network has: an answer has as many as there are."""

MODEL = {"name": "classifier", "version": "3", "run_id": "6ff341d2", "data_version": "6e1f3b14"}
PREDICTIONS = [{"label": "cat", "probability": 0.93}, {"label": "dog", "probability": 0.05}]
PROBLEM = {"error": "bad_request", "detail": "not an image"}
EXAMPLES: dict[str, Document] = {
    "Answer": {"predictions": PREDICTIONS, "uncertain": False, "model": MODEL},
    "BatchAnswer": {"results": [{"predictions": PREDICTIONS, "uncertain": False}, PROBLEM], "model": MODEL},
    "Explanation": {
        "label": "cat",
        "probability": 0.93,
        "evidence": [[0.1, 0.4], [1.7, -0.2]],
        "crop": 0.875,
        "model": MODEL,
    },
    "Examples": {"examples": [{"label": "cat", "image": "iVBORw0KGgo="}]},
    "Problem": PROBLEM,
    "ServerInfo": {"name": "convoy", "version": "1", "extensions": ["binary_tensor_data"]},
    "ModelInfo": {
        "name": "classifier",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}],
    },
    "InferenceAnswer": {
        "model_name": "classifier",
        "model_version": "3",
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.93, 0.07]}],
    },
    "InferenceProblem": {"error": "not an image"},
}
"""An answer of each kind; a real explanation has more rows."""
REFUSALS = {
    400: "Not an image, or a broken one; or a malformed form.",
    401: "No token, or none that this endpoint knows.",
    404: "Not the name, or the version, of the model that is served here.",
    408: "The request did not arrive in time.",
    413: "Too many bytes, or too many pixels.",
    414: "The URL is too long.",
    415: "Not a type that is read here.",
    422: "A wrong parameter, no field `image`, or too many files.",
    429: "More than this token may ask for; Retry-After says when to try again.",
    431: "The headers are too many or too long.",
    503: "Too many requests at once, or no model is ready; Retry-After says when to try again.",
}
ALWAYS = tuple(status for status in REFUSALS if status != 404)
"""Refusals of any image."""
ANYWHERE = (408, 414, 429, 431, 503)
"""Refusals of any request."""
_OBJECT: Document = {"application/json": {"schema": {"type": "object"}}}
_TEXT: Document = {"text/plain": {"schema": {"type": "string"}}}
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def describe_api(config: ServingConfig, tokens: Tokens) -> Document:
    """Make the OpenAPI 3.1 document of an endpoint with these settings."""
    number = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": config.top_k}
    top_k = _parameter("query", "top_k", "number of classes", number)
    label = _parameter("query", "label", "the class to explain; default: the likeliest", {"type": "string"})
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {"schema": {"type": "object", "properties": {FIELD: file}, "required": [FIELD]}}
    one = {"image/*": {}, "application/octet-stream": {}, "multipart/form-data": form}
    files = {"type": "array", "items": file, "minItems": 1, "maxItems": config.max_batch_images}
    form = {"schema": {"type": "object", "properties": {FIELD: files}, "required": [FIELD]}}
    many = {"multipart/form-data": form}
    limit = f"The body has at most {config.max_body_mb:g} MB."
    document: Document = {
        "openapi": "3.1.0",
        "info": {"title": "Convoy", "version": "1", "description": "An image classifier."},
        "paths": {
            "/classify": {"post": _post("classify", "Classify an image", limit, one, "Answer", top_k)},
            "/classify/batch": {
                "post": _post(
                    "classifyBatch",
                    "Classify many images",
                    f"{limit} An image that is refused has a Problem in its place, and does not fail the others.",
                    many,
                    "BatchAnswer",
                    top_k,
                )
            },
            "/explain": {"post": _post("explain", "Show where the evidence is", limit, one, "Explanation", label)},
            "/model": {"get": _get("model", "The model's manifest", _OBJECT)},
            "/examples": {"get": _get("examples", "Test images to try the model with", _json("Examples"))},
            "/openapi.json": {"get": _get("openapi", "This document", _OBJECT)},
            "/schema.json": {"get": _get("schema", "What BentoML's clients read", _OBJECT)},
            "/metrics": {"get": _open(_get("metrics", "Metrics for Prometheus", _TEXT))},
            "/livez": {"get": _open(_get("livez", "Whether the process lives"))},
            "/readyz": {"get": _open(_get("readyz", "Whether the model is ready"))},
            **_protocol(limit),
        },
        "components": {"schemas": _schemas()},
    }
    if not tokens:
        for item in document["paths"].values():
            for operation in item.values():
                operation["responses"].pop("401", None)
    else:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _protocol(limit: str) -> Document:
    """Describe the Open Inference Protocol."""
    paths: Document = {
        "/v2": {"get": _get("v2Server", "Open Inference Protocol: what answers", _json("ServerInfo"))},
        "/v2/health/live": {"get": _open(_get("v2Live", "Whether the process lives", _OBJECT))},
        "/v2/health/ready": {"get": _open(_get("v2Ready", "Whether the model is ready", _OBJECT))},
    }
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}}}
    summary = "Open Inference Protocol: classify images"
    description = f"{limit} With the header {JSON_LENGTH}, bytes of tensors follow the JSON."
    for suffix, path, names in (
        ("", "/v2/models/{name}", ("name",)),
        ("Version", "/v2/models/{name}/versions/{version}", ("name", "version")),
    ):
        parameters = [_parameter("path", name, f"the model's {name}", {"type": "string"}) for name in names]
        infer = _post(f"v2Infer{suffix}", summary, description, content, "InferenceAnswer", None)
        infer["responses"]["200"]["content"]["application/octet-stream"] = {}
        operations = {
            path: {"get": _get(f"v2Model{suffix}", "Open Inference Protocol: the model", _json("ModelInfo"))},
            f"{path}/ready": {"get": _get(f"v2ModelReady{suffix}", "Whether the model is ready", _OBJECT)},
            f"{path}/infer": {"post": infer},
        }
        for item in operations.values():
            for operation in item.values():
                operation["parameters"] = parameters
                operation["responses"] |= _refusals((404,))
        paths |= operations
    for item in paths.values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    response["content"] = _json("InferenceProblem")
    return paths


def _schemas() -> Document:
    answers: tuple[type[Any], ...] = (Answer, BatchAnswer, Explanation, Examples, Problem)
    answers += (ServerInfo, ModelInfo, InferenceAnswer, InferenceProblem)
    kinds: list[tuple[str, Literal["serialization", "validation"], TypeAdapter[Any]]] = [
        (kind.__name__, "serialization", TypeAdapter(kind)) for kind in answers
    ]
    kinds.append(("InferenceRequest", "validation", TypeAdapter(InferenceRequest)))
    _, schemas = TypeAdapter.json_schemas(kinds, ref_template="#/components/schemas/{model}")
    definitions: Document = schemas["$defs"]
    return definitions


def _parameter(place: str, name: str, description: str, schema: Document) -> Document:
    required = {"required": True} if place == "path" else {}
    return {"name": name, "in": place, "description": description, "schema": schema} | required


def _post(
    name: str, summary: str, description: str, content: Document, answer: str, parameter: Document | None
) -> Document:
    return {
        "operationId": name,
        "summary": summary,
        "description": description,
        "parameters": [parameter] if parameter else [],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": summary, "content": _json(answer)}} | _refusals(ALWAYS),
    }


def _get(name: str, summary: str, content: Document | None = None) -> Document:
    answer = {"description": summary} | ({"content": content} if content else {})
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": answer} | _refusals((401, *ANYWHERE)),
    }


def _open(operation: Document) -> Document:
    """Describe an operation that needs no token."""
    del operation["responses"]["401"]
    return operation | {"security": []}


def _refusals(statuses: Iterable[int]) -> Document:
    return {
        str(status): {"description": REFUSALS[status], "content": _json("Problem")}
        | ({"headers": RETRY_AFTER} if status in (429, 503) else {})
        for status in sorted(statuses)
    }


def _json(kind: str) -> Document:
    reference = {"$ref": f"#/components/schemas/{kind}"}
    return {"application/json": {"schema": reference, "example": EXAMPLES[kind]}}
