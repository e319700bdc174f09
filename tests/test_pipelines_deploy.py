"""From a registered champion to a container behind the gateway, and back, by the command that a user types."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rollouts import Load, Stack
from test_serving_classifier import BLUE, OCTETS, make_model

from core.files import file_sha256
from models.exported.predictor import read_model_manifest
from models.tracking.registry import CHAMPION, PREVIOUS, Registry, normalize_file, write_manifest
from models.tracking.runs import Tracking
from serving.rollout.docker import docker

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

CONVOY = Path(sys.executable).with_name("convoy")
NAME = "deploy-tests"
TEXT = {"content-type": "text/plain"}


@pytest.fixture
def stack(workspace):
    with Stack(workspace) as stack:
        yield stack
        stack.images |= set(docker("image", "ls", "--format={{.Repository}}:{{.Tag}}", f"convoy/{NAME}").split())


def convoy(*arguments, exit_code=0):
    """Run the command; gives what it printed, and what it logged."""
    command = [CONVOY, *arguments, "--set", f"registry.model_name={NAME}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == exit_code, found.stderr + found.stdout
    assert "Traceback" not in found.stderr
    return found.stdout, found.stderr


def register(folder):
    """Make a version the champion, as a training would."""
    tracking = Tracking(f"sqlite:///{Path('outputs/mlflow/mlflow.db').resolve()}", "convoy", Path("outputs/mlflow"))
    registry = Registry(tracking.uri, NAME)
    with tracking.open_run(None, "a run", None) as log:
        log.metrics({"test/accuracy": 0.75}, step=0)
    model = make_model(folder, version=None)
    normalize_file(model / "model.onnx")
    known = {"run_id": log.run_id, "name": NAME, "onnx_sha256": file_sha256(model / "model.onnx")}
    write_manifest(model, read_model_manifest(model).model_copy(update=known))
    registry.promote(registry.register(model))
    return registry


def test_the_champion_is_deployed_and_rolled_back(stack, tmp_path):
    Path("outputs/mlflow").mkdir(parents=True)
    register(tmp_path / "one")
    printed, _ = convoy("deploy", "--target", "cpu")
    assert f"cpu is live on http://127.0.0.1:{stack.port}/cpu/" in printed
    headers = OCTETS | {"Authorization": f"Bearer {stack.token}"}
    assert stack.ask("/cpu/classify", body=BLUE)[0] == 401
    status, answer, _ = stack.ask("/cpu/classify", body=BLUE, headers=headers)
    assert (status, answer["model"]["version"], answer["predictions"][0]["label"]) == (200, "1", "blue")
    # A refusal that comes while a large body is on its way.
    for _ in range(10):
        status, problem, _ = stack.ask("/cpu/classify", body=bytes(15_000_000), headers=headers | TEXT)
        assert (status, problem["error"]) == (415, "unsupported_media_type")

    registry = register(tmp_path / "two")
    with Load(stack.port, body=BLUE, headers=headers, pause=0.05) as load:
        # How fast it answers on this machine is no matter here.
        quick = ["--set", "rollout.canary_seconds=1", "--set", "rollout.canary_max_slowdown=100"]
        convoy("deploy", "--target", "cpu", "--canary", "50", *quick)
        convoy("rollback", "--target", "cpu", "--why", "it is worse")
    assert load.failed == []
    assert load.answered.keys() == {"1", "2"}
    assert registry.by_alias(CHAMPION).version == "1"
    assert registry.by_alias(PREVIOUS) is None
    entries = json.loads(convoy("ledger", "--json")[0])
    assert [entry["what"] for entry in entries] == ["deploy", "canary", "promote", "rollback"]
    assert [entry["to"]["model_version"] for entry in entries] == ["1", "2", "2", "1"]
    assert entries[0]["figures"] == {"test/accuracy": 0.75}
    (share,) = json.loads(convoy("status", "--json")[0])["live"]["cpu"]["shares"]
    assert (share["percent"], share["release"]["model_version"], share["health"]) == (100, "1", "healthy")
    assert "deploy: skipped" in convoy("deploy", "--target", "cpu")[1]
    assert "nothing to roll cpu back to" in convoy("rollback", "--target", "cpu", exit_code=1)[1]
    assert "has no version 9" in convoy("deploy", "--target", "cpu", "--version", "9", exit_code=2)[1]
