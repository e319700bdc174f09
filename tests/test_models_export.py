import base64
import io

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import tiny_job
from PIL import Image

from core.errors import UserError
from core.files import file_sha256
from models.exported.export import (
    ServedNetwork,
    TorchPredictor,
    export_onnx,
    export_program,
    make_golden,
    preprocessing_of,
)
from models.exported.manifest import ModelManifest
from models.exported.predictor import OnnxPredictor
from models.exported.torch_program import ProgramPredictor
from models.networks.weights import IMAGENET
from models.tracking.registry import write_manifest
from models.training.train import build_classifier

NETWORKS = ["lenet5", "alexnet"]
CROP = 20


def served(prepared, network):
    """A network whose answers differ from image to image, as an untrained one's do not."""
    torch.manual_seed(0)
    classifier = build_classifier(tiny_job(prepared, network))
    for parameter in classifier.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean += 0.1 * torch.randn_like(module.running_mean)
            module.running_var *= 1 + torch.rand_like(module.running_var)
    return ServedNetwork(classifier)


def noise(num_images):
    """Noise around another colour in each image."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 200, (num_images, 1, 1, 3))
    return (colors + rng.integers(0, 56, (num_images, CROP, CROP, 3))).astype(np.uint8)


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request, prepared, tmp_path_factory):
    """A trained network's stand-in and its export."""
    network = served(prepared, request.param)
    path = export_onnx(network, CROP, tmp_path_factory.mktemp("exported"))
    return TorchPredictor(network), onnxruntime.InferenceSession(path)


@pytest.mark.parametrize("num_images", [1, 2, 7])
def test_the_export_answers_as_the_network_whatever_the_batch(pair, num_images):
    predictor, session = pair
    images = noise(num_images)
    expected = predictor(images)
    (found,) = session.run(["probabilities"], {"image": images})
    assert found.shape == (num_images, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_the_networks_compared_do_answer_differently(pair):
    answers = pair[0](noise(7))
    assert np.abs(answers - answers.mean(axis=0)).max() > 0.01


def test_an_answer_does_not_depend_on_its_neighbours_in_the_batch(pair):
    _, session = pair
    images = noise(7)
    (together,) = session.run(["probabilities"], {"image": images})
    (alone,) = session.run(["probabilities"], {"image": images[3:4]})
    np.testing.assert_allclose(alone[0], together[3], atol=1e-6)


def test_the_graph_takes_plain_pixels(prepared, tmp_path):
    graph = onnx.load(export_onnx(served(prepared, "lenet5"), CROP, tmp_path / "not" / "there")).graph
    (image,), (probabilities,) = graph.input, graph.output
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    shape = [axis.dim_param or axis.dim_value for axis in image.type.tensor_type.shape.dim]
    assert shape == ["batch", CROP, CROP, 3]
    assert probabilities.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert probabilities.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_normalization_is_part_of_the_graph(prepared, tmp_path):
    """What the endpoint computes from pixels is what training computed: (x / 255 - mean) / std, then softmax."""
    network = served(prepared, "lenet5")
    color = tiny_job(prepared).manifest.color
    images = noise(2)
    pixels = (images / 255 - np.array(color.mean)) / np.array(color.std)
    with torch.inference_mode():
        logits = network.network.eval()(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    session = onnxruntime.InferenceSession(export_onnx(network, CROP, tmp_path))
    (found,) = session.run(["probabilities"], {"image": images})
    np.testing.assert_allclose(found, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-5)


def test_exporting_leaves_dropout_switched_off(prepared):
    predictor = TorchPredictor(served(prepared, "alexnet"))
    np.testing.assert_array_equal(predictor(noise(2)), predictor(noise(2)))


def test_a_golden_image_comes_back_bit_by_bit():
    (image,) = noise(1)
    golden = make_golden(image, np.array([0.25, 0.75], dtype=np.float32))
    assert golden.probabilities == (0.25, 0.75)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(golden.image)))), image)


def test_an_endpoint_does_to_an_image_what_preparation_did(prepared):
    manifest = tiny_job(prepared).manifest
    spec = preprocessing_of(manifest, CROP)
    assert (spec.size, spec.crop, spec.max_pixels) == (24, CROP, manifest.max_pixels)
    assert spec.normalization == manifest.color.normalization


@pytest.mark.parametrize("precision", ["onnx", "program"])
def test_a_manifest_with_another_normalization_than_the_graph_is_refused(prepared, tmp_path, precision):
    """EfficientNet-Lite with ImageNet's mean and deviation would take a daisy for a lampshade, and say nothing."""
    network, data = served(prepared, "lenet5"), tiny_job(prepared).manifest
    path, program = export_onnx(network, CROP, tmp_path), export_program(network, CROP, tmp_path)
    (image,) = noise(1)
    for normalization in (network.normalize.spec, IMAGENET):
        preprocessing = preprocessing_of(data, CROP, normalization)
        manifest = ModelManifest(
            name="n", version="1", network="lenet5", classes=data.classes, preprocessing=preprocessing,
            preprocessing_hash=preprocessing.hash, run_id="r", data_version="d", git_commit=None, metrics={},
            onnx_sha256=file_sha256(path), program_sha256=file_sha256(program),
            golden=make_golden(image, TorchPredictor(network)(image[None])[0]),
        )  # fmt: skip
        write_manifest(tmp_path, manifest)
        load = OnnxPredictor if precision == "onnx" else ProgramPredictor
        if normalization is IMAGENET:
            with pytest.raises(UserError, match=rf"normalizes pixels otherwise .* {preprocessing.hash}\): export it"):
                load(tmp_path)
        else:
            load(tmp_path)


def test_a_manifest_whose_hash_is_of_another_preprocessing_is_damaged(prepared, tmp_path):
    network, data = served(prepared, "lenet5"), tiny_job(prepared).manifest
    path = export_onnx(network, CROP, tmp_path)
    (image,) = noise(1)
    with pytest.raises(ValueError, match="preprocessing and its hash do not belong together"):
        ModelManifest(
            name="n", version="1", network="lenet5", classes=data.classes,
            preprocessing=preprocessing_of(data, CROP, IMAGENET), preprocessing_hash=preprocessing_of(data, CROP).hash,
            run_id="r", data_version="d", git_commit=None, metrics={}, onnx_sha256=file_sha256(path),
            golden=make_golden(image, TorchPredictor(network)(image[None])[0]),
        )  # fmt: skip
