import base64
import io
import struct
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from core.errors import UserError
from core.files import file_sha256
from data.images.decode import DecodeError, Preprocessing, TooLargeError
from models.exported.manifest import Certainty, Golden, Int8, ModelManifest
from models.exported.predictor import read_model_manifest
from models.tracking.registry import write_manifest
from serving.endpoint.classifier import Classifier, Room
from serving.targets import ONNXRUNTIME_INT8

SIZE, CROP, MAX_PIXELS = 10, 8, 10_000
CLASSES = ("red", "green", "blue")


def softmax_of_means(color: tuple[int, int, int]) -> tuple[float, ...]:
    """What the model of `make_model` answers to one colour: the softmax of 0.02 times the mean of each channel."""
    powers = np.exp(0.02 * np.array(color))
    return tuple(map(float, powers / powers.sum()))


def make_model(
    folder: Path,
    *,
    version: str | None = "3",
    golden: tuple[float, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
    certainty: Certainty | None = None,
) -> Path:
    """A network that names the strongest colour of an image, and the manifest that belongs to it."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["samples"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["samples", "axes"], ["means"], keepdims=0),
            helper.make_node("Mul", ["means", "scale"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "strongest-color",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", CROP, CROP, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("scale", TensorProto.FLOAT, [1], [0.02]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    preprocessing = Preprocessing(size=SIZE, crop=CROP, max_pixels=max_pixels)
    manifest = ModelManifest(
        name="Strongest Color",
        version=version,
        network="means",
        classes=CLASSES,
        preprocessing=preprocessing,
        preprocessing_hash=preprocessing.hash,
        run_id="run-1",
        data_version="data-1",
        git_commit="0a1b2c3",
        metrics={"test/accuracy": 1.0},
        onnx_sha256=file_sha256(folder / "model.onnx"),
        golden=Golden(
            image=base64.b64encode(picture((200, 50, 0), side=CROP)).decode(),
            probabilities=golden or softmax_of_means((200, 50, 0)),
        ),
        certainty=certainty,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def make_quantized(folder: Path, *, refusal: str | None = None, golden: tuple[float, ...] | None = None) -> Path:
    """The same with a second file, in the place of one in int8, and what its manifest says of that."""
    make_model(folder)
    (folder / "model.int8.onnx").write_bytes((folder / "model.onnx").read_bytes())
    tried = Int8(
        refusal=refusal,
        accuracy_drop={"val": 0.0, "test": 0.0},
        seconds={"fp32": {1: 0.02}, "int8": {1: 0.01}},
        num_bytes={"fp32": 4, "int8": 1},
        onnx_sha256=file_sha256(folder / "model.int8.onnx"),
        golden=golden or softmax_of_means((200, 50, 0)),
    )
    write_manifest(folder, read_model_manifest(folder).model_copy(update={"int8": tried}))
    return folder


def picture(color: tuple[int, int, int], side: int = 20, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, kind)
    return file.getvalue()


BLUE = picture((10, 20, 240))
OCTETS = {"content-type": "application/octet-stream"}


def test_it_names_the_likeliest_classes_first(tmp_path):
    classifier = Classifier(make_model(tmp_path))
    red, green, blue = softmax_of_means((10, 20, 240))
    answer = classifier.classify(BLUE, top_k=2)
    assert [prediction["label"] for prediction in answer["predictions"]] == ["blue", "green"]
    assert [prediction["probability"] for prediction in answer["predictions"]] == pytest.approx([blue, green], abs=1e-5)
    (*_, last) = classifier.classify(BLUE, top_k=99)["predictions"]
    assert last == {"label": "red", "probability": pytest.approx(red, abs=1e-5)}


CERTAINTY = Certainty(threshold=0.9, max_entropy=1.0, precision=0.95, coverage=0.8, num_images=200)
GREY = picture((90, 100, 110))


def test_an_answer_says_whether_it_is_uncertain(tmp_path):
    """Of grey, no colour has more than 40 %."""
    knows, does_not = (
        Classifier(make_model(tmp_path / "1", certainty=CERTAINTY)),
        Classifier(make_model(tmp_path / "2")),
    )
    assert [knows.classify(image, 1)["uncertain"] for image in (BLUE, GREY)] == [False, True]
    assert [does_not.classify(image, 1)["uncertain"] for image in (BLUE, GREY)] == [False, False]


def test_what_is_no_image_is_refused(tmp_path):
    classifier = Classifier(make_model(tmp_path))
    with pytest.raises(DecodeError):
        classifier.classify(b"junk", top_k=1)
    with pytest.raises(TooLargeError):
        classifier.classify(picture((0, 0, 0), side=101), top_k=1)


def test_a_model_that_answers_otherwise_than_measured_is_not_loaded(tmp_path):
    red, green, blue = softmax_of_means((200, 50, 0))
    Classifier(make_model(tmp_path / "rounded", golden=(red - 0.0005, green + 0.0005, blue)))
    for number, golden in enumerate([(red - 0.002, green + 0.002, blue), (green, red, blue), (red, green)]):
        with pytest.raises(UserError, match="golden image"):
            Classifier(make_model(tmp_path / str(number), golden=golden))


@pytest.mark.parametrize(
    "answered",
    [
        pytest.param((0.3336, 0.3332, 0.3332), id="within the tolerance, but another class first"),
        pytest.param((np.nan, np.nan, np.nan), id="not a number"),
    ],
)
def test_a_golden_answer_must_name_the_same_class(tmp_path, monkeypatch, answered):
    model = make_model(tmp_path, golden=(0.3330, 0.3335, 0.3335))
    probabilities = np.array([answered], dtype=np.float32)
    monkeypatch.setattr("models.exported.predictor.OnnxPredictor.__call__", lambda *_: probabilities)
    with pytest.raises(UserError, match="golden image"):
        Classifier(model)


def test_int8_has_a_file_and_a_golden_answer_of_its_own(tmp_path):
    red, green, blue = softmax_of_means((200, 50, 0))
    moved = make_quantized(tmp_path / "moved", golden=(red - 0.04, green + 0.04, blue))
    assert Classifier(moved, ONNXRUNTIME_INT8).classify(BLUE, 1)["predictions"][0]["label"] == "blue"
    far = make_quantized(tmp_path / "far", golden=(red - 0.06, green + 0.06, blue))
    with pytest.raises(UserError, match="golden image"):
        Classifier(far, ONNXRUNTIME_INT8)
    (moved / "model.int8.onnx").write_bytes(b"altered")
    with pytest.raises(UserError, match=r"model\.int8\.onnx was altered"):
        Classifier(moved, ONNXRUNTIME_INT8)
    Classifier(moved)


def test_an_image_that_takes_too_much_memory_is_refused(tmp_path):
    classifier = Classifier(make_model(tmp_path, max_pixels=50_000_000), decoding_mb=2)
    assert classifier.classify(picture((10, 20, 240), side=500), top_k=1)
    with pytest.raises(TooLargeError, match="may take 6 MB of memory, more than the 2 MB for it"):
        classifier.classify(picture((10, 20, 240), side=1000), top_k=1)
    # Read at an eighth of its size.
    assert classifier.classify(picture((10, 20, 240), side=3000, kind="JPEG"), top_k=1)


def test_an_icon_that_hides_a_large_picture_is_not_opened(tmp_path):
    classifier = Classifier(make_model(tmp_path, max_pixels=50_000_000))
    frame = picture((10, 20, 240), side=2000)
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(frame), 22) + frame
    with pytest.raises(TooLargeError, match="an icon of 4,000,000 pixels"):
        classifier.classify(icon, top_k=1)


def test_memory_is_shared_in_turns():
    room, order = Room(10), []

    def hold(number: int, size: int, until: threading.Event) -> None:
        with room.take(size):
            order.append(number)
            until.wait(10)

    first, others = threading.Event(), threading.Event()
    others.set()
    threads = []
    for number, (size, until) in enumerate([(6, first), (8, others), (1, others)]):
        threads.append(threading.Thread(target=hold, args=(number, size, until)))
        threads[-1].start()
        time.sleep(0.1)
    # The second does not fit beside the first, and the third does not overtake it.
    assert order == [0]
    first.set()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2]
    with pytest.raises(TooLargeError), room.take(11):
        pytest.fail("there was room")
    with room.take(10):
        pass
