"""A model in the formats of other runtimes: what is written answers as the model does."""

import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from imports import ROOT
from PIL import Image
from test_models_gate import strongest_color
from test_serving_classifier import make_model

from core.errors import UserError
from data.batches.shards import PreparedImages
from data.images.decode import decode
from data.manifest import read_data_manifest
from models.exported import c_code
from models.exported.c_code import CPredictor, write_c
from models.exported.formats import available_formats
from models.exported.manifest import Certainty, Int8
from models.exported.predictor import OnnxPredictor, read_model_manifest
from models.judging.parity import PARITY_FILE, export_formats

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed")


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A model and its C code."""
    folder = tmp_path_factory.mktemp("c")
    model = make_model(folder / "model", max_pixels=1_000_000, certainty=Certainty(
        threshold=0.5, max_entropy=0.75, precision=0.95, coverage=0.9, num_images=100
    ))  # fmt: skip
    (folder / "code").mkdir()
    shutil.copy(model / "manifest.json", folder / "code")
    write_c(model, folder / "code")
    return model, folder / "code"


@needs_compiler
def test_c_code_answers_as_onnxruntime_does(code):
    model, folder = code
    side = read_model_manifest(model).preprocessing.crop
    images = np.random.default_rng(0).integers(0, 256, (5, side, side, 3), dtype=np.uint8)
    np.testing.assert_allclose(CPredictor(folder)(images), OnnxPredictor(model)(images), atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("shape", [(300, 200), (200, 301), (24, 24), (25, 24), (7, 90), (500, 333), (3, 3)])
def test_c_code_resizes_to_the_same_bits_as_the_decoder(code, shape):
    model, folder = code
    spec = read_model_manifest(model).preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(CPredictor(folder).preprocess(pixels, spec.crop), decode(file.getvalue(), spec))


def test_the_header_names_the_model_its_classes_and_what_is_uncertain(code):
    model, folder = code
    header = (folder / "classifier.h").read_text()
    assert f"preprocessing {read_model_manifest(model).preprocessing.hash}" in header
    assert "#define CLASSIFIER_NUM_CLASSES 3\n" in header
    assert "#define CLASSIFIER_MIN_PROBABILITY 0.5f\n" in header
    assert "malloc" not in "".join(path.read_text() for path in folder.glob("*.c"))


@needs_compiler
def test_the_example_of_the_documents_compiles(code, tmp_path):
    example = (ROOT / "docs" / "export.md").read_text().split("```c\n")[1].split("```")[0]
    (tmp_path / "answer.c").write_text(example)
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", code[1], "-c"]
    for source in (tmp_path / "answer.c", code[1] / "preprocess.c"):
        subprocess.run(["cc", *strict, source, "-o", tmp_path / "object.o"], check=True)


def test_class_names_become_text_of_c():
    assert c_code._text('a"b\\é??') == '"a\\042b\\134\\303\\251\\077\\077"'


def test_formats_are_held_against_each_other(prepared, tmp_path):
    data = read_data_manifest(prepared)
    model = strongest_color(tmp_path / "model", data)
    images = PreparedImages(prepared, data, "test")
    found = export_formats(model, ["onnx"], tmp_path / "out", images)
    assert [(one.format, one.files, one.agreement) for one in found] == [("onnx", ("model.onnx",), 1.0)]
    assert found[0].max_difference < 1e-6
    assert json.loads((tmp_path / "out" / PARITY_FILE).read_text())[0]["accuracy"] == found[0].accuracy
    with pytest.raises(UserError, match="no empty folder; name a new one"):
        export_formats(model, ["onnx"], tmp_path / "out", images)
    with pytest.raises(UserError, match=r"^torch: this model was registered without it; .* to be had are onnx, c$"):
        export_formats(model, ["onnx", "torch"], tmp_path / "other", images)
    assert not (tmp_path / "other").exists()


def test_int8_that_was_refused_is_not_exported(tmp_path):
    model = make_model(tmp_path / "model")
    refused = Int8(
        refusal="it loses 3 points", accuracy_drop={}, seconds={}, num_bytes={}, onnx_sha256="", golden=()
    )  # fmt: skip
    manifest = read_model_manifest(model).model_copy(update={"int8": refused})
    (model / "manifest.json").write_text(manifest.model_dump_json())
    assert available_formats(model) == ("onnx", "c")
    with pytest.raises(UserError, match="int8 was refused for this model: it loses 3 points"):
        export_formats(model, ["onnx-int8"], tmp_path / "out", images=None)


def test_a_large_network_is_not_written_as_c(tmp_path, monkeypatch):
    monkeypatch.setattr(c_code, "MAX_MODEL_MB", 0)
    with pytest.raises(UserError, match=r"^c: model.onnx has 0.0 MB, and C is for networks of at most 0"):
        write_c(make_model(tmp_path), tmp_path)


@needs_compiler
def test_without_a_compiler_the_code_is_not_tried(code, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(UserError, match="no C compiler is installed"):
        CPredictor(code[1])
