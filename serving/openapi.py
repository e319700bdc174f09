"""The description of the interface. BentoML describes its own methods only, and nothing that is mounted beside them."""

from typing import Any

from pydantic import TypeAdapter

from serving.answers import Answer, BatchAnswer, Explanation, Problem
from serving.auth import Tokens
from serving.body import FIELD
from serving.config import ServingConfig

Document = dict[str, Any]

MODEL = {"name": "classifier", "version": "3", "run_id": "6ff341d2", "data_version": "6e1f3b14"}
PREDICTIONS = [{"label": "cat", "probability": 0.93}, {"label": "dog", "probability": 0.05}]
PROBLEM = {"error": "bad_request", "detail": "not an image"}
EXAMPLES: dict[str, Document] = {
    "Answer": {"predictions": PREDICTIONS, "model": MODEL},
    "BatchAnswer": {"results": [{"predictions": PREDICTIONS}, PROBLEM], "model": MODEL},
    "Explanation": {
        "label": "cat",
        "probability": 0.93,
        "evidence": [[0.1, 0.4], [1.7, -0.2]],
        "crop": 0.875,
        "model": MODEL,
    },
    "Problem": PROBLEM,
}
"""An answer of each kind; a real explanation has more rows."""
REFUSALS = {
    400: "Not an image, or a broken one; or a malformed form.",
    401: "No token, or none that this endpoint knows.",
    408: "The body did not arrive in time.",
    413: "Too many bytes, or too many pixels.",
    415: "Not a type that is read here.",
    422: "A wrong parameter, no field `image`, or too many files.",
    503: "Too many requests at once, or no model is ready; Retry-After says when to try again.",
}


def describe_api(config: ServingConfig, tokens: Tokens) -> Document:
    """Make the OpenAPI 3.1 document of an endpoint with these settings."""
    top_k = _query("top_k", "number of classes", {"type": "integer", "minimum": 1, "default": config.top_k})
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
            "/model": {"get": _get("model", "The model's manifest", "application/json", {"type": "object"})},
            "/openapi.json": {"get": _get("openapi", "This document", "application/json", {"type": "object"})},
            "/metrics": {"get": _get("metrics", "Metrics for Prometheus", "text/plain") | {"security": []}},
            "/livez": {"get": _get("livez", "Whether the process lives", "text/plain") | {"security": []}},
            "/readyz": {"get": _get("readyz", "Whether the model is ready", "text/plain") | {"security": []}},
        },
        "components": {"schemas": _schemas()},
    }
    if tokens:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _schemas() -> Document:
    kinds = (Answer, BatchAnswer, Explanation, Problem)
    _, schemas = TypeAdapter.json_schemas(
        [(kind.__name__, "serialization", TypeAdapter(kind)) for kind in kinds],
        ref_template="#/components/schemas/{model}",
    )
    definitions: Document = schemas["$defs"]
    return definitions


def _query(name: str, description: str, schema: Document) -> Document:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _post(name: str, summary: str, description: str, content: Document, answer: str, parameter: Document) -> Document:
    problem = _json("Problem")
    refusals = {str(status): {"description": reason, "content": problem} for status, reason in REFUSALS.items()}
    return {
        "operationId": name,
        "summary": summary,
        "description": description,
        "parameters": [parameter],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": summary, "content": _json(answer)}} | refusals,
    }


def _get(name: str, summary: str, media_type: str, schema: Document | None = None) -> Document:
    content = {media_type: {"schema": schema or {"type": "string"}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}},
    }


def _json(kind: str) -> Document:
    reference = {"$ref": f"#/components/schemas/{kind}"}
    return {"application/json": {"schema": reference, "example": EXAMPLES[kind]}}
