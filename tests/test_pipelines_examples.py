"""Test images of the workspace on the page of the champion's endpoint."""

import json
from pathlib import Path

import pytest
from conftest import draw_classes
from test_serving_classifier import make_model

from core.errors import UserError
from core.files import file_sha256
from data.versioning import data_version, reproduce
from models.exported.predictor import read_model_manifest
from models.tracking.registry import Registry, normalize_file, write_manifest
from models.tracking.runs import Tracking
from pipelines.config import load_config
from pipelines.settings import Settings
from pipelines.workspace import ROOT, pack_champion


def register(folder, version_of_data):
    """Make a version the champion, as a training on that data would."""
    settings = Settings()
    tracking = Tracking(settings.tracking_uri(ROOT), "convoy", settings.artifacts(ROOT))
    registry = Registry(tracking.uri, "classifier")
    with tracking.open_run(None, "a run", None) as log:
        log.metrics({"test/accuracy": 0.75}, step=0)
    model = make_model(folder, version=None)
    normalize_file(model / "model.onnx")
    known = {"run_id": log.run_id, "name": "classifier", "onnx_sha256": file_sha256(model / "model.onnx")}
    write_manifest(model, read_model_manifest(model).model_copy(update=known | {"data_version": version_of_data}))
    registry.promote(registry.register(model))


def labels(bento):
    packed = bento.path / "src/examples.json"
    return [one["label"] for one in json.loads(packed.read_text())["examples"]] if packed.exists() else None


@pytest.mark.slow
def test_they_are_packed_with_a_champion_of_the_same_data(workspace, tmp_path, caplog):
    photos = draw_classes(tmp_path / "photos", ["cat", "dog", "emu"], 12)
    options = ["data.source=folder", f"data.path={photos}", "data.size=24"]
    plain = load_config(Path("params.yaml"), options)
    config = load_config(Path("params.yaml"), [*options, "serving.examples=2"])
    register(tmp_path / "none", "another")
    with pytest.raises(UserError, match="prepare it with `convoy data prepare`"):
        pack_champion(config)
    reproduce(ROOT, config.data, "prepare")
    assert labels(pack_champion(config)) is None
    why = "package: no examples on the page: the images prepared here are not those of classifier v1"
    assert [record.message for record in caplog.records if record.message.startswith(why)]
    register(tmp_path / "same", data_version(ROOT))
    assert labels(pack_champion(plain)) is None
    assert labels(pack_champion(config)) == ["cat", "emu"]
