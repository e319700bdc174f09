"""The Open Inference Protocol, as its specification has it; `test_serving_clients.py` asks by its client."""

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_serving_app import Send, sender
from test_serving_classifier import BLUE, CROP, OCTETS, make_model, picture

from serving.endpoint import tensors
from serving.endpoint.auth import Tokens, new_token
from serving.endpoint.classifier import Classifier
from serving.endpoint.tensors import JSON_LENGTH

MODEL = "/v2/models/Strongest Color"
RED = picture((240, 20, 10))
BASE64 = base64.b64encode(BLUE).decode()
PIXELS = np.full((2, CROP, CROP, 3), (10, 20, 240), dtype=np.uint8)
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(make_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def send(classifier: Classifier) -> Send:
    return sender(lambda: classifier, max_body_mb=0.1, max_batch_images=3)


def of_files(*images: bytes) -> dict[str, Any]:
    data = [base64.b64encode(image).decode() for image in images]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": data}]}


def of_pixels(pixels: np.ndarray) -> dict[str, Any]:
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.tolist()}
    return {"inputs": [tensor]}


def packed(request: dict[str, Any], tail: bytes) -> dict[str, Any]:
    """A request whose values are bytes behind its JSON."""
    request["inputs"][0].pop("data", None)
    request["inputs"][0]["parameters"] = {"binary_data_size": len(tail)}
    text = json.dumps(request).encode()
    return {"content": text + tail, "headers": {JSON_LENGTH: str(len(text)), **OCTETS}}


def elements(*images: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def outputs(answer: dict[str, Any]) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


def test_the_figures_are_those_of_classify(send):
    expected = send("POST", "/classify", content=BLUE, headers=OCTETS).json()
    by_label = {each["label"]: each["probability"] for each in expected["predictions"]}
    probabilities = [by_label[label] for label in ("red", "green", "blue")]
    pixels = PIXELS[:1]
    for request in (
        {"json": of_files(BLUE)},
        {"json": of_pixels(pixels)},
        packed(of_files(BLUE), elements(BLUE)),
        packed(of_pixels(pixels), pixels.tobytes()),
    ):
        response = send("POST", f"{MODEL}/infer", **request)
        assert response.status_code == 200, response.text
        found = outputs(response.json())
        assert found == {"probabilities": probabilities, "label": ["blue"], "uncertain": [expected["uncertain"]]}


def test_an_answer_has_the_outputs_asked_for_in_the_form_asked_for(send):
    request = of_files(BLUE, RED) | {
        "id": "42",
        "outputs": [{"name": "label"}, {"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    response = send("POST", f"{MODEL}/versions/3/infer", json=request)
    length = int(response.headers[JSON_LENGTH])
    answer = json.loads(response.content[:length])
    size = {"binary_data_size": 24}
    assert answer == {
        "model_name": "Strongest Color",
        "model_version": "3",
        "id": "42",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["blue", "red"]},
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 3], "parameters": size},
        ],
    }
    plain = outputs(send("POST", f"{MODEL}/infer", json=of_files(BLUE, RED)).json())["probabilities"]
    assert np.frombuffer(response.content[length:], "<f4").tolist() == plain

    everything = of_files(BLUE) | {"parameters": {"binary_data_output": True}}
    response = send("POST", f"{MODEL}/infer", json=everything)
    assert response.content[int(response.headers[JSON_LENGTH]) :].endswith(struct.pack("<I", 4) + b"blue\x00")


def test_the_server_and_the_model_describe_themselves(send):
    assert send("GET", "/v2").json()["extensions"] == ["binary_tensor_data"]
    assert send("GET", "/v2/health/live").json() == {"live": True}
    assert send("GET", "/v2/health/ready").json() == {"ready": True}
    for path in (MODEL, f"{MODEL}/versions/3"):
        assert send("GET", f"{path}/ready").json() == {"name": "Strongest Color", "ready": True}
        model = send("GET", path).json()
        assert (model["name"], model["versions"], model["platform"]) == ("Strongest Color", ["3"], "onnxruntime_onnx")
        assert [(each["name"], each["shape"]) for each in model["inputs"]] == [
            ("image", [-1]),
            ("pixels", [-1, CROP, CROP, 3]),
        ]
        assert [each["datatype"] for each in model["outputs"]] == ["FP32", "BYTES", "BOOL"]


@pytest.mark.parametrize(
    "path", ["/v2/models/other", f"{MODEL}/versions/4", "/v2/models/other/ready", "/v2/models/", f"{MODEL}/config"]
)
def test_there_is_one_model_of_one_version(send, path):
    assert send("GET", path).status_code == 404


def test_a_model_that_is_not_there_is_not_ready():
    send = sender(lambda: None)
    assert send("GET", "/v2/health/live").status_code == 200
    for path in ("/v2/health/ready", f"{MODEL}/ready"):
        response = send("GET", path)
        assert (response.status_code, response.json().keys()) == (503, {"error"})


def changed(**values: object) -> dict[str, Any]:
    """A request for one image whose input is changed."""
    request = of_files(BLUE)
    request["inputs"][0] |= values
    return {"json": request}


@pytest.mark.parametrize(
    ("request_", "status", "word"),
    [
        ({"content": b"{"}, 400, "not an inference request"),
        ({"content": b"[" * 100_000}, 400, "recursion"),
        ({"content": b'{"inputs": ' + b"[" * 5000}, 400, "recursion"),
        (
            {"content": b'{"inputs": [], "id": ' + b"1" * 5000 + b"}"},
            400,
            "not an inference request: body: Invalid JSON",
        ),
        ({"json": {"inputs": []}}, 400, "one input"),
        ({"json": {"inputs": of_files(BLUE)["inputs"] * 2}}, 400, "one input"),
        (changed(name="picture"), 400, "`image`"),
        (changed(datatype="FP32"), 400, "`image`"),
        (changed(shape=[]), 400, "at least 1"),
        (changed(shape=[0]), 400, "at least 1"),
        (changed(shape=[-1]), 400, "shape"),
        (changed(shape=[2]), 400, "base64"),
        (changed(shape=[4], data=[BASE64] * 4), 422, "3 are allowed"),
        (changed(data=["%"]), 400, "base64"),
        (changed(data=[{}]), 400, "base64"),
        (changed(data=None), 400, "`data`"),
        (changed(data=[base64.b64encode(b"junk").decode()]), 400, "image 0: not an image"),
        (changed(data=[""]), 400, "empty"),
        (changed(parameters={"binary_data_size": "3"}), 400, "`data`"),
        (changed(parameters={"shared_memory_region": "mine"}, data=None), 400, "`data`"),
        ({"json": of_files(picture((0, 0, 0), side=101))}, 413, "pixels"),
        ({"json": of_pixels(PIXELS[:, :4])}, 400, "UINT8 of shape"),
        ({"json": of_pixels(PIXELS[:1] * 1.0)}, 400, "whole numbers"),
        ({"json": of_pixels(PIXELS[:1].astype(int) - 20)}, 400, "whole numbers"),
        ({"json": of_pixels(PIXELS[:1].astype(int) + 20)}, 400, "whole numbers"),
        (changed(name="pixels", datatype="UINT8", shape=[1, CROP, CROP, 3], data=[[1], 2]), 400, "whole numbers"),
        (packed(of_files(BLUE), elements(BLUE)[:-1]), 400, "behind its length"),
        (packed(of_files(BLUE, BLUE), b"\xff\xff\xff\xff" + BLUE), 400, "behind its length"),
        (packed(of_pixels(PIXELS), PIXELS[:1].tobytes()), 400, "whole numbers"),
        (packed(of_files(BLUE), b"x") | {"headers": {JSON_LENGTH: "99999999"}}, 400, JSON_LENGTH),
        (packed(of_files(BLUE), b"x") | {"headers": {JSON_LENGTH: "-1"}}, 400, JSON_LENGTH),
        (packed(of_files(BLUE), b"x" * 100_000), 413, "larger"),
        ({"json": of_files(BLUE) | {"outputs": [{"name": "logits"}]}}, 400, "probabilities, label"),
        (
            {"json": of_files(BLUE) | {"outputs": [{"name": "label", "parameters": {"classification": 2}}]}},
            400,
            "not supported",
        ),
        ({"files": {"image": BLUE}}, 415, "application/json"),
        ({"content": b"{}", "headers": {"content-encoding": "gzip"}}, 415, "Content-Encoding"),
    ],
)
def test_what_is_no_request_is_refused_in_the_words_of_the_protocol(send, request_, status, word):
    response = send("POST", f"{MODEL}/infer", **request_)
    assert (response.status_code, response.json().keys()) == (status, {"error"}), response.text
    assert word in response.json()["error"]


def test_json_of_more_values_than_one_image_has_is_refused(classifier, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_VALUES", 1000)
    send = sender(lambda: classifier)
    response = send("POST", f"{MODEL}/infer", json=of_pixels(np.concatenate([PIXELS] * 4)))
    assert (response.status_code, "binary_data_size" in response.json()["error"]) == (413, True)


def test_it_asks_for_a_token_and_counts_images(classifier):
    token, line = new_token("ann")
    bearer = {"authorization": f"Bearer {token}"}
    send = sender(lambda: classifier, tokens=Tokens({line.split()[0]: "ann"}), token_images_per_second=2)
    for path in ("/v2", MODEL, f"{MODEL}/ready", "/schema.json", "/v2/unknown"):
        assert send("GET", path).status_code == 401, path
    refused = send("POST", f"{MODEL}/infer", json=of_files(BLUE))
    assert (refused.status_code, refused.json().keys()) == (401, {"error"})
    assert send("GET", "/v2/health/ready").status_code == 200
    answers = [
        send("POST", f"{MODEL}/infer", json=of_files(*[BLUE] * 5), headers=bearer),
        send("POST", f"{MODEL}/infer", json=of_files(BLUE), headers=bearer),
    ]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert (
        'convoy_token_images_total{model="Strongest Color",token="ann",version="3"} 5.0' in send("GET", "/metrics").text
    )


def test_metrics_name_the_route_and_not_the_path(send):
    for name in ("one", "two", "Strongest Color"):
        send("GET", f"/v2/models/{name}")
    metrics = send("GET", "/metrics").text
    assert 'route="/v2/models/{name}",status="404"' in metrics
    assert "/v2/models/one" not in metrics
