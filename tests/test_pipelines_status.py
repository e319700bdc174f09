"""`convoy status` against a real registry."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

STATUS = (
    "import contextlib, sys\nfrom pipelines.commands.main import app\n"
    "with contextlib.suppress(SystemExit): app(['status', '--json'])\n"
    "print('mlflow' in sys.modules)"
)


def status() -> tuple[str | None, bool]:
    """Version of the champion, and whether MLflow was imported for it."""
    found = subprocess.run([sys.executable, "-c", STATUS], capture_output=True, text=True, check=True).stdout
    answer, _, imported = found.rstrip().rpartition("\n")
    champion = json.loads(answer)["champion"]
    return champion and champion["version"], imported == "True"


@pytest.fixture
def client(workspace) -> MlflowClient:
    """A registry with two versions, none of them champion."""
    Path("outputs/mlflow").mkdir(parents=True)
    client = MlflowClient(f"sqlite:///{Path('outputs/mlflow/mlflow.db').resolve()}")
    run_id = client.create_run(client.create_experiment("convoy")).info.run_id
    client.create_registered_model("classifier")
    for _ in range(2):
        client.create_model_version("classifier", f"runs:/{run_id}/model", run_id=run_id)
    return client


@pytest.mark.slow
def test_mlflow_is_asked_again_where_its_database_has_changed(client):
    assert status() == (None, True)
    assert status() == (None, False)
    for version in ("1", "2"):
        client.set_registered_model_alias("classifier", "champion", version)
        assert status() == (version, True)
    assert status() == ("2", False)


def test_before_the_first_run_mlflow_is_not_asked(workspace):
    assert status() == (None, False)
