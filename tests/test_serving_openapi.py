import base64
import json
import re
from typing import Any

import pytest
from pydantic import TypeAdapter
from test_serving_app import ANYONE, sender
from test_serving_classifier import BLUE, OCTETS, make_model

from serving.config import ServingConfig
from serving.endpoint.answers import Answer, BatchAnswer, Examples, Explanation, Problem
from serving.endpoint.app import create_app
from serving.endpoint.auth import read_tokens
from serving.endpoint.batching import Limits
from serving.endpoint.classifier import Classifier
from serving.endpoint.openapi import EXAMPLES, describe_api

PAGE = {"/", "/page.js", "/tiles.js", "/page.css"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return describe_api(ServingConfig(top_k=3, max_batch_images=7), ANYONE)


def test_it_describes_every_route_that_is_not_the_page(document):
    routes = create_app(lambda: None, ServingConfig(), limits=Limits(1, 1, 1, 0, 1, 1), tokens=ANYONE).routes
    described = {path: [*item] for path, item in document["paths"].items()}
    assert described == {path: [route.method.lower()] for path, route in routes.items() if path not in PAGE}


def test_its_references_lead_somewhere_and_its_operations_are_whole(document):
    assert document["openapi"] == "3.1.0"
    assert {"title", "version"} <= document["info"].keys()
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        start, *keys = reference.split("/")
        assert start == "#"
        found = document
        for key in keys:
            found = found[key]
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert all("description" in response for response in operation["responses"].values())
        assert all(parameter.keys() >= {"name", "in", "schema"} for parameter in operation.get("parameters", []))
    assert document["components"]["schemas"].keys() >= {"Answer", "BatchAnswer", "Explanation", "Problem"}


def test_its_examples_are_what_it_describes():
    for kind in (Answer, BatchAnswer, Explanation, Examples, Problem):
        assert TypeAdapter(kind).validate_python(EXAMPLES[kind.__name__]) == EXAMPLES[kind.__name__]


def test_the_answers_are_what_it_describes(tmp_path):
    classifier = Classifier(make_model(tmp_path))
    send = sender(lambda: classifier, top_k=2)
    answer = send("POST", "/classify", content=BLUE, headers=OCTETS).json()
    batch = send("POST", "/classify/batch", files=[("image", BLUE), ("image", b"junk")]).json()
    explanation = send("POST", "/explain", content=BLUE, headers=OCTETS).json()
    examples = {"examples": [{"label": "blue", "image": base64.b64encode(BLUE).decode()}]}
    shown = sender(lambda: classifier, examples=examples)("GET", "/examples").json()
    problem = send("POST", "/classify", content=b"junk", headers=OCTETS).json()
    kinds = {Answer: answer, BatchAnswer: batch, Explanation: explanation, Examples: shown, Problem: problem}
    for kind, found in kinds.items():
        assert TypeAdapter(kind).validate_python(found, strict=True) == found
    assert send("GET", "/openapi.json").json()["paths"].keys() >= {"/classify"}


def test_it_describes_what_uncertain_means(document):
    for kind in ("Answer", "Predictions"):
        field = document["components"]["schemas"][kind]["properties"]["uncertain"]
        assert (field["type"], "does not know" in field["description"]) == ("boolean", True)


def test_it_says_the_limits_and_whether_a_token_is_needed(document):
    batch = document["paths"]["/classify/batch"]["post"]
    assert batch["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["image"]["maxItems"] == 7
    assert batch["parameters"][0]["schema"]["default"] == 3
    assert "security" not in document
    closed = describe_api(ServingConfig(), read_tokens({"CONVOY_TOKENS": "0" * 64}))
    assert closed["security"] == [{"token": []}]
    assert closed["paths"]["/metrics"]["get"]["security"] == []
    for path in ("/model", "/openapi.json", "/classify"):
        (operation,) = closed["paths"][path].values()
        assert operation["responses"].keys() >= {"401", "414", "429", "431"}
        (operation,) = document["paths"][path].values()
        assert "401" not in operation["responses"]
        assert "Retry-After" in operation["responses"]["429"]["headers"]
    assert "401" not in closed["paths"]["/metrics"]["get"]["responses"]
