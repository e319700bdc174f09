"""A run trained again, in a worktree of its commit."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import tiny_job
from test_pipelines_commands import convoy, told

from models.steps import train_run
from pipelines import reproduction
from pipelines.config import Config
from pipelines.reproduction import first_difference, judge_curves
from pipelines.workspace import CHECKPOINTS, git_commit, open_tracking


def test_where_two_curves_part():
    before = {"train/loss": [(1, 0.5), (2, 0.25)], "val/loss": [(2, 0.75)]}
    assert first_difference(before, {name: list(points) for name, points in before.items()}) == ""
    assert (
        first_difference(before, {**before, "train/loss": [(1, 0.5), (2, 0.125)]})
        == "step 2, train/loss: 0.25 and 0.125"
    )
    assert first_difference(before, {**before, "val/loss": []}) == "step 2, val/loss: 0.75 and nothing"


@pytest.mark.parametrize(
    ("accuracy", "weights", "verdict"),
    [
        (0.9, "not here any more", "equal"),
        (0.9, "different", "within tolerance"),
        (0.905, "equal", "within tolerance"),
        (0.93, "different", "different"),
    ],
)
def test_a_small_difference_is_within_tolerance(accuracy, weights, verdict):
    found = judge_curves("run-1", {"val/accuracy": [(1, 0.9)]}, {"val/accuracy": [(1, accuracy)]}, weights, ["a note"])
    assert (found.verdict, found.notes) == (verdict, ("a note",))
    assert ("they part at step 1, val/accuracy: 0.9 and" in str(found)) == (accuracy != 0.9)


@pytest.fixture
def run(workspace, prepared, monkeypatch):
    """A finished run of a training of three epochs."""
    for name in ("raw", "prepared"):
        shutil.copytree(prepared.parent / name, workspace / "data" / name)
    job = tiny_job(Path("data/prepared"))
    monkeypatch.setattr(reproduction, "data_version", lambda _: job.data_version)
    return train_run(open_tracking(Config()), job, CHECKPOINTS / job.key, git_commit())


@pytest.mark.slow
def test_the_same_run_is_bit_equal(run, workspace, monkeypatch):
    found = json.loads(convoy("reproduce", run[:8], "--json").stdout)
    assert (found["verdict"], found["first_difference"], found["weights"]) == ("equal", "", "equal")
    assert found["notes"] == []
    assert subprocess.check_output(["git", "worktree", "list"], text=True).count("\n") == 1
    # What is missing is named, all of it at once.
    monkeypatch.setattr(reproduction, "data_version", lambda _: "e" * 32)
    open_tracking(Config()).client.set_tag(run, "mlflow.source.git.commit", "0" * 40)
    line = told(convoy("reproduce", run), 1)
    assert "its commit 00000000 is not in this repository" in line
    assert "its data version dddddddd is not the one that is prepared (eeeeeeee)" in line
    assert f"there is no finished run 'nothing'; known are {run}" in told(convoy("reproduce", "nothing"), 2)
