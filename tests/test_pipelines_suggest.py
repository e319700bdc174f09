import json

import pytest
from typer.testing import CliRunner

from models.training import suggestions
from pipelines.commands.main import app


@pytest.fixture
def quick(monkeypatch):
    """One step in place of a second of them."""
    monkeypatch.setattr(suggestions, "MIN_SECONDS", 0.0)


def suggest(*arguments):
    result = CliRunner().invoke(app, ["suggest", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def with_photos(workspace, tmp_path):
    """A workspace with prepared images; draw_classes makes them of 24 px, or of what is asked for."""
    from conftest import draw_classes

    from data.config import DataConfig
    from data.ingest.stage import ingest
    from data.preparing.stage import prepare

    def make(size):
        config = DataConfig(source="folder", path=draw_classes(tmp_path / "photos", ["cat", "dog"], 20, size), size=32)
        ingest(config, workspace / "data/raw", tmp_path / "state.json")
        prepare(config, workspace / "data/raw", workspace / "data/prepared", tmp_path / "parts")

    return make


def test_photographs_start_from_pretrained_weights(with_photos, quick):
    with_photos(80)
    first, good, best = json.loads(suggest("--json"))
    assert first["settings"] == {
        "model.network": "efficientnet_lite0",
        "model.weights": "imagenet",
        "data.size": "80",
        "training.recipe": "probe",
    }
    assert "training.recipe" not in good["settings"]
    assert 0 < first["seconds"] + 1 <= good["seconds"] + 1 <= best["seconds"] + 1


@pytest.mark.slow
def test_small_images_are_learned_from_nothing(with_photos, quick):
    with_photos(24)
    for one in json.loads(suggest("--json")):
        assert "model.weights" not in one["settings"]
        assert one["settings"]["data.size"] == "32"


@pytest.mark.slow
def test_what_was_typed_is_part_of_what_to_type(with_photos, quick):
    with_photos(24)
    printed = suggest("--set", "data.source=folder", "--set", "data.path=my photos", "--set", "data.size=64")
    commands = [line for line in printed.splitlines() if "convoy run" in line]
    assert len(commands) == 3
    for command in commands:
        assert "--set data.source=folder --set 'data.path=my photos' --set data.size=32" in command


def test_without_prepared_images_one_line_says_what_to_type(workspace):
    result = CliRunner().invoke(app, ["suggest"])
    assert result.exit_code == 2
    assert "prepare the images with `convoy data prepare`" in result.stderr
