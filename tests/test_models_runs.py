import contextlib

import numpy as np
import pytest

from core.errors import UserError
from core.files import file_sha256
from data.images.decode import Preprocessing
from models.exported.manifest import INT8_FILE, MODEL_FILE, Golden, Int8, ModelManifest
from models.exported.predictor import OnnxPredictor, read_model_manifest
from models.judging.gate import Check, Verdict
from models.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS, Registry, normalize_file, write_manifest
from models.tracking.runs import Tracking


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    return Tracking(f"sqlite:///{folder}/mlflow.db", "tests", folder / "artifacts")


def test_the_experiment_is_one_of_training_models(tracking, tmp_path):
    kind = {"mlflow.experimentKind": "custom_model_development"}
    assert tracking.client.get_experiment(tracking.experiment_id).tags.items() >= kind.items()
    old = tracking.client.create_experiment("made before")
    assert Tracking(tracking.uri, "made before", tmp_path).experiment_id == old
    assert tracking.client.get_experiment(old).tags.items() >= kind.items()


def open_and_leave(tracking, error=None):
    with contextlib.suppress(ValueError, KeyboardInterrupt), tracking.open_run(None, "a run", "0" * 40) as log:
        log.metrics({"val/loss": 1.0}, step=1)
        if error:
            raise error
    return log.run_id


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_the_status_says_how_a_run_ended(tracking, error, status):
    run = tracking.client.get_run(open_and_leave(tracking, error))
    assert run.info.status == status
    assert run.data.tags["mlflow.source.git.commit"] == "0" * 40


def test_a_resumed_run_keeps_its_id_and_doubles_no_metric(tracking):
    run_id = open_and_leave(tracking, KeyboardInterrupt())
    assert tracking.is_resumable(run_id)
    with tracking.open_run(run_id, "ignored", None) as log:
        assert log.run_id == run_id
        log.metrics({"val/loss": 1.0}, step=1)
        log.metrics({"val/loss": 0.5}, step=2)
    assert log.history(["val/loss"]) == {"val/loss": [(1, 1.0), (2, 0.5)]}
    log.tag({"convoy.trained": "true"})
    assert not tracking.is_resumable(run_id)
    assert not tracking.is_resumable("no such run")


def test_a_verdict_is_kept_with_its_figures(tracking):
    run_id = open_and_leave(tracking)
    check = Check(name="test/accuracy", value=0.2, comparison=">=", limit=0.3, passed=False)
    tracking.log(run_id).verdict(Verdict(checks=(check,)))
    assert tracking.get(run_id).tags["convoy.verdict"] == "failed: test/accuracy 0.2 < 0.3"
    assert [artifact.path for artifact in tracking.client.list_artifacts(run_id)] == ["verdict.json"]


def export(folder, run_id):
    """Three classes, whatever the image: softmax of the first pixel's colours."""
    from onnx import TensorProto, helper, save_model

    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["float"], ["top"], axes=[1, 2], keepdims=0),
        helper.make_node("Softmax", ["top"], ["probabilities"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [image], [output]), opset_imports=[helper.make_opsetid("", 17)]
    )
    folder.mkdir()
    save_model(model, folder / MODEL_FILE)
    normalize_file(folder / MODEL_FILE)
    preprocessing = Preprocessing(size=4, crop=4, max_pixels=100)
    manifest = ModelManifest(
        name="classifier",
        version=None,
        network="lenet5",
        classes=("a", "b", "c"),
        preprocessing=preprocessing,
        preprocessing_hash=preprocessing.hash,
        run_id=run_id,
        data_version="d" * 32,
        git_commit=None,
        metrics={},
        onnx_sha256=file_sha256(folder / MODEL_FILE),
        golden=Golden(image="", probabilities=()),
    )
    write_manifest(folder, manifest)
    return folder


def test_challenger_champion_previous(tracking, tmp_path):
    registry = Registry(tracking.uri, "classifier")
    assert registry.by_alias(CHAMPION) is None
    first = registry.register(export(tmp_path / "one", open_and_leave(tracking)))
    assert registry.by_alias(CHALLENGER) == first
    assert registry.by_run(first.run_id) == first
    registry.promote(first)
    assert registry.by_alias(CHALLENGER) is None
    second = registry.register(export(tmp_path / "two", open_and_leave(tracking)))
    registry.promote(second)
    champion, previous = registry.by_alias(CHAMPION), registry.by_alias(PREVIOUS)
    assert champion is not None
    assert previous is not None
    assert (champion.version, previous.version) == (second.version, first.version)
    assert champion.data_version == "d" * 32

    folder = registry.download(champion, tmp_path)
    assert OnnxPredictor(folder).manifest.version == second.version
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    images[:, 0, 0, 1] = 200
    assert OnnxPredictor(folder)(images).argmax(axis=1).tolist() == [1, 1]


def test_the_champion_of_before_is_restored(tracking, tmp_path):
    registry = Registry(tracking.uri, "restored")
    for number in ("1", "2", "3"):
        registry.promote(registry.register(export(tmp_path / number, open_and_leave(tracking))))

    def aliases():
        found = (registry.by_alias(CHAMPION), registry.by_alias(PREVIOUS))
        return [one and one.version for one in found]

    assert aliases() == ["3", "2"]
    assert registry.restore("2").version == "2"
    registry.name_previous("1")
    assert aliases() == ["2", "1"]
    registry.restore("1")
    for gone in (None, "9"):
        registry.name_previous("2")
        registry.name_previous(gone)
        assert aliases() == ["1", None]
    with pytest.raises(UserError, match="restored has no version 9 any more"):
        registry.restore("9")
    assert registry.find("9") is registry.find("nine") is None


def test_a_quantized_file_travels_with_its_model(tracking, tmp_path):
    registry = Registry(tracking.uri, "quantized")
    exported = export(tmp_path / "exported", open_and_leave(tracking))
    (exported / INT8_FILE).write_bytes(b"in int8")
    tried = Int8(
        refusal=None,
        accuracy_drop={"test": 0.0},
        seconds={"fp32": {1: 0.02}, "int8": {1: 0.01}},
        num_bytes={"fp32": 4, "int8": 1},
        onnx_sha256=file_sha256(exported / INT8_FILE),
        golden=(),
    )
    write_manifest(exported, read_model_manifest(exported).model_copy(update={"int8": tried}))
    version = registry.register(exported)
    folder = registry.download(version, tmp_path)
    assert read_model_manifest(folder).int8 == tried
    assert (folder / INT8_FILE).read_bytes() == b"in int8"
    # What was altered here is fetched again.
    (folder / INT8_FILE).write_bytes(b"altered")
    assert (registry.download(version, tmp_path) / INT8_FILE).read_bytes() == b"in int8"
