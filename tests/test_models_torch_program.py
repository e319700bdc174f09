import zipfile

import numpy as np
import pytest
import torch
from conftest import tiny_job
from test_models_export import noise

from core.errors import UserError
from core.files import file_sha256
from models.exported.export import ServedNetwork, TorchPredictor, export_program, make_golden, preprocessing_of
from models.exported.manifest import PROGRAM_FILE, ModelManifest
from models.exported.torch_program import BATCH_SIZES, ProgramPredictor, load_program
from models.training.train import build_classifier

CROP = 20


def make_program(prepared, folder, network="alexnet"):
    """A network with the weights of seed 0, exported with its manifest."""
    torch.manual_seed(0)
    job = tiny_job(prepared, network)
    classifier = build_classifier(job)
    with torch.no_grad():
        for layer in classifier.modules():
            if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
        list(classifier.network.parameters())[-2].normal_(std=0.2)  # answers far from 1/3
    served = ServedNetwork(classifier)
    path = export_program(served, CROP, folder)
    expected = TorchPredictor(served)(noise(1))[0]
    preprocessing = preprocessing_of(job.manifest, CROP)
    manifest = ModelManifest(
        name="n", version="1", network=network, classes=job.manifest.classes, preprocessing=preprocessing,
        preprocessing_hash=preprocessing.hash, run_id="r", data_version="d", git_commit=None, metrics={},
        onnx_sha256="", program_sha256=file_sha256(path), golden=make_golden(noise(1)[0], expected),
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return served


@pytest.fixture(scope="module")
def made(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    return folder, make_program(prepared, folder)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_it_answers_as_the_network_does_up_to_the_rounding_of_bf16(made, number):
    folder, served = made
    images = noise(number)
    answered, expected = ProgramPredictor(folder, device="cpu")(images), TorchPredictor(served)(images)
    assert answered.dtype == np.float32
    assert expected.max() > 0.5
    # 8 bits of a logit around 1, through a softmax: 2^-8 times some layers
    np.testing.assert_allclose(answered, expected, atol=0.02)


def test_batches_of_more_than_the_largest_size_are_divided(made, monkeypatch):
    monkeypatch.setattr("models.exported.torch_program.BATCH_SIZES", (1, 2))
    predictor = ProgramPredictor(made[0], device="cpu")
    whole = predictor(noise(5))
    assert len(whole) == 5
    np.testing.assert_allclose(predictor(noise(5)[4:]), whole[4:], atol=0.01)
    assert tuple(sorted(BATCH_SIZES)) == BATCH_SIZES


def test_the_file_holds_weights_of_16_bits_and_no_pickle(made):
    with zipfile.ZipFile(made[0] / PROGRAM_FILE) as archive:
        assert b'"use_pickle": true' not in b"".join(
            archive.read(name) for name in archive.namelist() if "json" in name
        )
        assert not [name for name in archive.namelist() if "sample_inputs" in name and archive.getinfo(name).file_size]
        bytes_of_weights = sum(archive.getinfo(name).file_size for name in archive.namelist() if "/weight_" in name)
    parameters = sum(parameter.numel() for parameter in made[1].parameters())
    assert bytes_of_weights == pytest.approx(2 * parameters, rel=0.02)


def copied(made, tmp_path):
    for name in (PROGRAM_FILE, "manifest.json"):
        (tmp_path / name).write_bytes((made[0] / name).read_bytes())
    return tmp_path / PROGRAM_FILE


def test_an_altered_program_is_refused(made, tmp_path):
    path = copied(made, tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="was altered"):
        ProgramPredictor(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        ProgramPredictor(tmp_path)


def test_a_model_without_a_program_says_so(made, tmp_path):
    copied(made, tmp_path)
    manifest = ModelManifest.model_validate_json((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(manifest.model_copy(update={"program_sha256": None}).model_dump_json())
    with pytest.raises(UserError, match="exported without it"):
        ProgramPredictor(tmp_path)


def test_pickled_data_is_never_read(tmp_path):
    example = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    torch.export.save(example, tmp_path / "m.pt2")
    with pytest.raises(UserError, match="pickled"):
        load_program(tmp_path / "m.pt2", torch.device("cpu"))
    (tmp_path / "m.pt2").write_bytes(b"junk")
    with pytest.raises(UserError, match="no exported program"):
        load_program(tmp_path / "m.pt2", torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("number", [1, 2, 7, 300])
def test_graphs_answer_as_the_program_does(made, number):
    plain = ProgramPredictor(made[0], device="cuda", cuda_graphs=False)(noise(number))
    np.testing.assert_allclose(ProgramPredictor(made[0], device="cuda")(noise(number)), plain, atol=0.01)
