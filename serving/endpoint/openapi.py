"""The description of the interface. BentoML describes its own methods only, and nothing that is mounted beside them."""

from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

from serving.config import ServingConfig
from serving.endpoint.answers import Answer, BatchAnswer, Examples, Explanation, Problem
from serving.endpoint.auth import Tokens
from serving.endpoint.request_body import FIELD

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
}
"""An answer of each kind; a real explanation has more rows."""
REFUSALS = {
    400: "Not an image, or a broken one; or a malformed form.",
    401: "No token, or none that this endpoint knows.",
    408: "The request did not arrive in time.",
    413: "Too many bytes, or too many pixels.",
    414: "The URL is too long.",
    415: "Not a type that is read here.",
    422: "A wrong parameter, no field `image`, or too many files.",
    429: "More than this token may ask for; Retry-After says when to try again.",
    431: "The headers are too many or too long.",
    503: "Too many requests at once, or no model is ready; Retry-After says when to try again.",
}
ANYWHERE = (408, 414, 429, 431, 503)
"""Refusals of any request."""
_OBJECT: Document = {"application/json": {"schema": {"type": "object"}}}
_TEXT: Document = {"text/plain": {"schema": {"type": "string"}}}
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def describe_api(config: ServingConfig, tokens: Tokens) -> Document:
    """Make the OpenAPI 3.1 document of an endpoint with these settings."""
    number = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": config.top_k}
    top_k = _query("top_k", "number of classes", number)
    label = _query("label", "the class to explain; default: the likeliest", {"type": "string"})
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
            "/metrics": {"get": _open(_get("metrics", "Metrics for Prometheus", _TEXT))},
            "/livez": {"get": _open(_get("livez", "Whether the process lives"))},
            "/readyz": {"get": _open(_get("readyz", "Whether the model is ready"))},
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


def _schemas() -> Document:
    kinds = (Answer, BatchAnswer, Explanation, Examples, Problem)
    _, schemas = TypeAdapter.json_schemas(
        [(kind.__name__, "serialization", TypeAdapter(kind)) for kind in kinds],
        ref_template="#/components/schemas/{model}",
    )
    definitions: Document = schemas["$defs"]
    return definitions


def _query(name: str, description: str, schema: Document) -> Document:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _post(name: str, summary: str, description: str, content: Document, answer: str, parameter: Document) -> Document:
    return {
        "operationId": name,
        "summary": summary,
        "description": description,
        "parameters": [parameter],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": summary, "content": _json(answer)}} | _refusals(REFUSALS),
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
