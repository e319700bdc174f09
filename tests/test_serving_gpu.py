import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import tiny_job
from houses import sources_for
from test_models_torch_program import make_program
from test_serving_classifier import make_model

from core.errors import UserError
from models.config import GateConfig
from models.exported.manifest import PROGRAM_FILE
from models.steps import export_run, train_run
from models.tracking.registry import Registry
from models.tracking.runs import Tracking
from serving.config import ServingConfig
from serving.endpoint.classifier import Classifier
from serving.packaging.bento import build_bento
from serving.targets import TARGETS, TORCH

GPU = ServingConfig(target="gpu")


def test_a_model_that_was_registered_without_a_program_is_not_packed_for_a_gpu(tmp_path):
    with pytest.raises(UserError, match="was registered without"):
        build_bento(make_model(tmp_path / "model"), GPU, tmp_path / "store")


def test_the_rows_ask_for_one_runtime_each():
    assert "torch" in TARGETS["gpu"].packages
    assert "onnxruntime" not in TARGETS["gpu"].packages
    assert "torch" not in TARGETS["cpu"].packages


def test_a_golden_answer_has_the_tolerance_of_its_runtime(prepared, tmp_path):
    make_program(prepared, tmp_path)
    assert Classifier(tmp_path, TORCH).manifest.version == "1"
    with pytest.raises(UserError, match="golden image"):
        Classifier(tmp_path, replace(TORCH, tolerance=0.0))


@pytest.mark.slow
def test_a_bento_for_a_gpu_holds_the_program_and_loads_without_onnxruntime(prepared, tmp_path):
    make_program(prepared, tmp_path / "model")
    bento = build_bento(tmp_path / "model", GPU, tmp_path / "store")
    source = bento.path / "src"
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    chosen = {"serving.json", "packing.json", "placement.json", "schema.json", "bentofile.yaml"}
    packed = {"model/model.pt2", "model/manifest.json", *chosen}
    assert files == {*sources_for("models.exported.torch_program"), *packed}
    program = """
import asyncio, sys
from serving.endpoint.service import ConvoyService
assert "torch" not in sys.modules, "`bentoml build` pays for it"
service = ConvoyService.inner()
assert asyncio.run(service.__is_ready__())
assert not {"onnxruntime", "pytorch_lightning", "mlflow"} & sys.modules.keys()
"""
    environment = {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "true", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_program_goes_through_the_registry(prepared, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking, job, checkpoints = (
        Tracking(uri, "e", tmp_path / "artifacts"),
        tiny_job(prepared),
        tmp_path / "checkpoints",
    )
    run_id = train_run(tracking, job, checkpoints, None)
    export_run(tracking, job, run_id, checkpoints, tmp_path / "exported", "n", GateConfig())
    registry = Registry(uri, "n")
    folder = registry.download(registry.register(tmp_path / "exported"), tmp_path / "models")
    assert (folder / PROGRAM_FILE).read_bytes() == (tmp_path / "exported" / PROGRAM_FILE).read_bytes()
    Classifier(folder, TORCH)
    (folder / PROGRAM_FILE).unlink()
    assert (registry.download(registry.by_run(run_id), tmp_path / "models") / PROGRAM_FILE).is_file()
