"""The main job, end to end, as a user types it: real DVC, Lightning, MLflow, Prefect, BentoML, HTTP."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from conftest import draw_classes
from mlflow import MlflowClient

from models.training.recipes import RECIPES

CONVOY = Path(sys.executable).with_name("convoy")
# Two dozen test images are too few to be surely better than guessing, and to say much about calibration.
SMALL = [
    *("model.network=lenet5", "data.size=24", "training.batch_size=16", "training.max_epochs=3"),
    *("gate.better_than_guessing=false", "gate.max_calibration_error=1"),
]

pytestmark = pytest.mark.slow


def options(photos, *values):
    pairs = [f"data.path={photos}", "data.source=folder", *SMALL, *values]
    return [word for pair in pairs for word in ("--set", pair)]


def run(*arguments, exit_code=0):
    """Run the command; gives its reasons by step, and what it printed."""
    found = subprocess.run([CONVOY, *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == exit_code, found.stderr + found.stdout
    assert "Traceback" not in found.stderr
    lines = re.findall(r"^\d\d:\d\d:\d\d  ([\w]+): (.*)$", found.stderr, re.MULTILINE)
    return dict(lines), found


@pytest.fixture
def photos(tmp_path):
    return draw_classes(tmp_path / "my photos", ["cat", "dog", "emu"], 40)


def client():
    return MlflowClient(f"sqlite:///{Path('outputs/mlflow/mlflow.db').resolve()}")


def version_of(alias):
    # MLflow reads a number from a file, and text from a server.
    return str(client().get_model_version_by_alias("classifier", alias).version)


def test_the_whole_pipeline(workspace, photos):
    steps, found = run("run", *options(photos))
    assert steps["ingest"] == "done, it has not run before"
    assert "train: running, nothing has been trained yet" in found.stderr
    assert re.match(r"no threshold, \d+ validation images are too few \(100 are needed\)", steps["uncertain"])
    assert "is the champion, packed as" in found.stdout
    assert "its endpoint answered" in found.stdout
    check_status(photos)
    check_run()
    check_everything_is_skipped(photos)
    check_a_changed_parameter(photos)
    check_a_gate_that_cannot_pass(photos)
    check_serving(photos)
    subprocess.run(["git", "add", "dvc.lock"], check=True)
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    assert changed == "A  dvc.lock\n", "what a run makes is ignored by git, but for the version of the data"


def check_status(photos):
    found = json.loads(run("status", "--json", *options(photos))[1].stdout)
    assert found["data"].keys() >= {"version", "num_images", "classes"}
    assert (found["data"]["num_images"], found["data"]["classes"]) == (120, ["cat", "dog", "emu"])
    champion = found["champion"]
    assert champion.keys() >= {"name", "version", "run_id", "data_version", "metrics"}
    assert champion["version"] == "1"
    assert champion["data_version"] == found["data"]["version"]
    assert 0 <= champion["metrics"]["test/accuracy"] <= 1
    assert [bento["target"] for bento in found["bentos"]] == ["cpu"]
    assert found["bentos"][0]["tag"].startswith("classifier:1-cpu-")


def check_run():
    mlflow = client()
    version = mlflow.get_model_version_by_alias("classifier", "champion")
    run = mlflow.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.max_epochs"] == "3"
    assert (run.data.params["data.source"], run.data.params["data.size"]) == ("folder", "24")
    # A batch of 16, where the recipe's rate is for 128.
    assert float(run.data.params["execution.learning_rate"]) == RECIPES["modern"].learning_rate * 16 / 128
    version, accuracy = run.data.tags["convoy.data_version"][:8], 100 * run.data.metrics["test/accuracy"]
    assert run.info.run_name == f"lenet5, folder {version}, {accuracy:.1f} %"
    kind = mlflow.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"
    assert run.data.tags["convoy.verdict"] == "passed"
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40
    assert run.data.tags["convoy.tool_version"] == metadata.version("convoy")
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == run.data.tags["convoy.data_version"]
    # 3 epochs, each metric once
    assert len(mlflow.get_metric_history(run.info.run_id, "val/accuracy")) == 3
    names = {artifact.path for artifact in mlflow.list_artifacts(run.info.run_id, "figures")}
    assert names >= {f"figures/{name}.png" for name in ("augmentation", "confusion-matrix", "learning-curves")}
    assert {artifact.path for artifact in mlflow.list_artifacts(run.info.run_id)} >= {
        *("data-quality.html", "data-quality.json", "evaluation.json", "verdict.json")
    }


def check_everything_is_skipped(photos):
    steps, _ = run("run", *options(photos))
    del steps["data"], steps["run"]
    assert [step for step, reason in steps.items() if not reason.startswith("skipped, ")] == []
    assert steps.keys() == {"ingest", "prepare", "push", "train", "evaluate", "register", "gate", "package", "verify"}
    assert re.match(r"skipped, same data \w{8}, parameters and code as run \w{8}", steps["train"])


def check_a_changed_parameter(photos):
    steps, found = run("run", *options(photos, "augmentation.padding=1", "gate.max_regression=1"))
    assert steps["prepare"].startswith("skipped")
    assert "train: running, augmentation.padding 2 -> 1" in found.stderr
    assert "gate: against the champion: " in found.stderr
    assert version_of("champion") == "2"
    assert version_of("previous") == "1"


def check_a_gate_that_cannot_pass(photos):
    out_of_reach = options(photos, "training.seed=1", "training.max_epochs=1", "gate.max_parity_error=1e-12")
    _, found = run("run", *out_of_reach, exit_code=1)
    line = found.stderr.splitlines()[-1]
    assert line.startswith("convoy: gate: classifier v3 did not pass: ")
    assert line.endswith("classifier v2 stays champion")
    mlflow = client()
    challenger = mlflow.get_model_version_by_alias("classifier", "challenger")
    assert version_of("challenger") == "3"
    assert mlflow.get_run(challenger.run_id).data.tags["convoy.verdict"].startswith("failed: ")


def check_serving(photos):
    image = (photos / "cat" / "0.png").read_bytes()
    command = [CONVOY, "serve", "--port", "0", *options(photos)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as endpoint:
        assert endpoint.stdout is not None
        url = re.search(r"http://\S+", endpoint.stdout.readline()).group()  # type: ignore[union-attr]
        request = urllib.request.Request(f"{url}/classify", image, {"Content-Type": "image/png"})
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        endpoint.send_signal(signal.SIGTERM)
        assert endpoint.wait(30) == 0
    assert answer["model"]["version"] == "2"
    assert sum(row["probability"] for row in answer["predictions"]) == pytest.approx(1, abs=1e-5)
    (predicted,) = json.loads(run("predict", "--json", str(photos / "cat" / "0.png"), *options(photos))[1].stdout)
    assert predicted["predictions"][0]["label"] == answer["predictions"][0]["label"]


def test_auto_ends_well_with_a_probe_whose_fine_tuning_is_not_promoted(workspace, photos):
    auto = ["model.network=efficientnet_lite0", "model.weights=imagenet", "training.recipe=auto"]
    # Steps so small that the two models agree; so few test images are too few to tell.
    stays = ["training.max_epochs=1", "training.learning_rate=1e-9", "gate.when_unsure=wait"]
    _, found = run("run", *options(photos, *auto, *stays))
    (line,) = re.findall(r"gate: classifier v2 waits: .*", found.stderr)
    assert "too few images to tell" in line
    assert line.endswith("classifier v1 stays champion; decide with `convoy approve 2 --why TEXT`")
    assert "classifier v1 is the champion, packed as" in found.stdout
    assert (version_of("champion"), version_of("challenger")) == ("1", "2")
    _, found = run("run", *options(photos, *auto, *stays))
    assert "classifier v1 is the champion, packed as" in found.stdout


def interrupt(command, epoch, signal_number):
    """Send the signal after so many epochs; gives the lines that were told until the command ended."""
    with subprocess.Popen([CONVOY, "run", *command], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            told.append(line)
            if f"epoch {epoch}/40" in line:
                started = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal_number)
        process.wait()
    assert psutil.wait_procs(started, timeout=20)[1] == []
    assert "Traceback" not in "".join(told)
    return process.returncode, told


def test_an_interrupted_run_goes_on_where_it_was(workspace, photos):
    many = options(photos, "training.max_epochs=40")
    for epoch, signal_number in ((5, signal.SIGINT), (15, signal.SIGTERM)):
        exit_code, told = interrupt(many, epoch, signal_number)
        assert exit_code == 1
        assert told[-1] == "convoy: stopped; what was finished is kept: the same command goes on from there\n"
    _, told = interrupt(many, 25, signal.SIGKILL)
    assert not any("has ended as FAILED" in line or "epoch 14/40" in line for line in told)
    _, found = run("run", *many)
    assert re.search(r"train: resuming run \w{8}, which was interrupted", found.stderr)
    assert re.search(r"train: goes on after step \d+", found.stderr)
    assert re.search(r"train: run \w{8} has ended as FAILED: its process died", found.stderr)
    mlflow = client()
    (trained,) = mlflow.search_runs([mlflow.get_experiment_by_name("convoy").experiment_id])
    history = mlflow.get_metric_history(trained.info.run_id, "val/loss")
    assert len(history) == len({point.step for point in history}) == 40
