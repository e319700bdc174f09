"""The page docs/extending.md: what it shows is run."""

import re
import tomllib

import pytest
import yaml
from conftest import draw_classes
from imports import ROOT
from test_pipelines_commands import convoy

from data.config import SOURCES
from models.config import METRICS, NETWORKS, RULES
from models.tracking.runs import Tracking
from pipelines.config import load_config
from pipelines.settings import Settings
from serving.config import TARGET

PAGE = (ROOT / "docs/extending.md").read_text()
POINTS = (SOURCES, NETWORKS, METRICS, RULES, TARGET)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def merged(base, more):
    both = {name: merged(base[name], more[name]) for name in base.keys() & more.keys()}
    return base | more | both if isinstance(base, dict) else more


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Make a project by `convoy init`, with all files and all parameters of the page."""
    monkeypatch.chdir(tmp_path)
    assert convoy("init", "mine").exit_code == 0
    monkeypatch.chdir(tmp_path / "mine")
    for block in blocks("python"):
        (tmp_path / "mine" / block.splitlines()[0].removeprefix("# ")).write_text(block)
    quick = {
        "training": {"max_epochs": 6, "batch_size": 16},
        "gate": {"better_than_guessing": False, "max_calibration_error": 1},
    }
    values = quick | {"registry": {"experiment": "convoy"}}
    for block in blocks("yaml"):
        values = merged(values, yaml.safe_load(block))
    (tmp_path / "mine/params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("BENTOML_HOME", raising=False)
    return tmp_path / "mine"


def label(folder):
    draw_classes(folder, ["cat", "dog", "emu", "fox"], 40)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    (folder / "labels.csv").write_text("file,label\n" + "".join(f"{file},{file.split('/')[0]}\n" for file in files))


def test_each_door_is_shown_in_few_lines(project):
    assert all(len(block.splitlines()) < 20 for block in blocks("python"))
    config = load_config(project / "params.yaml")
    named = [config.data.source, config.model.network, config.evaluation.metrics[0], config.gate.rules[0]]
    assert [name.partition(":")[0] for name in [*named, config.serving.target]] == [
        *("my_source", "my_net", "my_metrics", "my_gate", "my_target")
    ]
    (package,) = blocks("toml")
    assert {*tomllib.loads(package)["project"]["entry-points"]} <= {point.group for point in POINTS}
    assert [point.group for point in POINTS if f"`{point.group}`" not in PAGE] == []


@pytest.mark.slow
def test_all_doors_of_the_page_in_one_run(project):
    label(project / "photos")
    result = convoy("run")
    assert result.exit_code == 0, result.output
    assert "gate: passed few_cats_are_missed" in result.output
    run = Tracking(Settings().tracking_uri(project), "convoy", None).latest_trained()
    assert 0.9 <= run.metrics["test/top3_accuracy"] <= 1
    assert (run.params["model.network"], run.params["data.source"]) == ("my_net:build", "my_source:LabelTable")
    assert list(project.glob("outputs/**/bentos/classifier/1-kiosk-*/src/placement.json"))
    assert not list(project.glob("outputs/**/bentos/**/my_net.py"))
    assert {line.split()[1] for line in convoy("explain").stdout.splitlines()} == {"skipped"}
    net = project / "my_net.py"
    net.write_text(f"# Small.\n{net.read_text()}")
    assert {line.split()[1] for line in convoy("explain").stdout.splitlines()} == {"skipped"}
    net.write_text(net.read_text().replace("32, num_classes", "32, num_classes, bias=False"))
    assert "train     runs     the code has changed since run " in convoy("explain").stdout
