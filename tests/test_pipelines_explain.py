"""`convoy explain`: what the next run would do, without doing it."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import draw_classes
from test_pipelines_commands import convoy

FILES = ("outputs/data-params.json", "dvc.lock", "outputs/mlflow/mlflow.db")


@pytest.fixture
def photos(workspace, tmp_path):
    """Make a project of it, so that no option need be repeated."""
    folder = draw_classes(tmp_path / "photos", ["cat", "dog"], 40)
    (workspace / "params.yaml").write_text(
        f"data: {{source: folder, path: {folder}, size: 24}}\nmodel: {{network: lenet5}}\ntraining: {{max_epochs: 1}}\n"
        "gate: {better_than_guessing: false, min_class_accuracy: null, max_calibration_error: 1}\n"
    )
    return folder


def explained(*options):
    """Answers and reasons by step; what is explained stays as it was."""
    result = convoy("explain", "--json", *options)
    assert result.exit_code == 0, result.output
    return {step["name"]: (step["answer"], step["reason"]) for step in json.loads(result.stdout)}


def test_before_the_first_run_everything_runs(photos):
    steps = explained()
    assert [answer for answer, _ in steps.values()] == ["runs"] * 8
    assert steps["ingest"][1] == "it has not run before"
    assert convoy("explain").stdout.startswith("ingest    runs     it has not run before\nprepare ")


def test_a_changed_source_is_told_by_the_numbers_of_its_classes(photos, workspace):
    assert convoy("data", "ingest").exit_code == 0
    assert explained()["ingest"] == ("skipped", "source, parameters and code are unchanged")
    before = {name: (workspace / name).read_bytes() for name in FILES[:2]}
    shutil.copy(photos / "cat" / "0.png", photos / "cat" / "new.png")
    draw_classes(photos, ["emu"], 3)
    assert explained()["ingest"] == ("runs", "the source has changed (cat 40 -> 41, emu 0 -> 3)")
    assert explained("--set", "data.max_file_mb=10")["ingest"][1].startswith("the source has changed")
    assert before == {name: (workspace / name).read_bytes() for name in FILES[:2]}, "nothing was written"


@pytest.mark.slow
def test_after_a_run_a_changed_parameter_is_named_with_both_values(photos, workspace):
    result = convoy("run")
    assert result.exit_code == 0, result.output
    steps = explained()
    assert {answer for answer, _ in steps.values()} == {"skipped"}, steps
    before = {name: (workspace / name).read_bytes() for name in FILES}
    steps = explained("--set", "training.max_epochs=2")
    assert steps["prepare"][0] == "skipped"
    assert steps["train"][0] == "runs"
    assert steps["train"][1].startswith("training.max_epochs 1 -> 2 since run ")
    assert steps["verify"] == ("runs", "it follows from the steps before")
    steps = explained("--set", "data.size=28")
    assert steps["prepare"] == ("runs", "data.size 24 -> 28")
    assert steps["train"][0] == "may run"
    steps = explained("--set", "serving.top_k=3")
    assert (steps["gate"][0], steps["package"][0]) == ("skipped", "runs")
    assert before == {name: (workspace / name).read_bytes() for name in FILES}, "nothing was written"


def test_nothing_heavy_is_loaded(photos):

    code = (
        "import sys\nfrom pipelines.commands.main import app\n"
        "app(['explain'], standalone_mode=False)\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'bentoml', 'onnxruntime', 'sklearn'} & sys.modules.keys()\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
