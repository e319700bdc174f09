from pathlib import Path

import pytest

from core.errors import UserError
from pipelines.config import Config, describe, load_config, render

PARAMS = Path(__file__).parents[1] / "params.yaml"


def test_params_yaml_is_what_the_classes_say():
    assert PARAMS.read_text(encoding="utf-8") == render(Config())


def test_params_yaml_is_the_default():
    assert load_config(PARAMS) == Config()


def test_every_parameter_is_documented():
    assert [path for path, _, documentation in describe() if len(documentation) < 8] == []


def test_the_form_has_the_same_documentation():
    schema = Config.model_json_schema()
    assert (
        schema["$defs"]["TrainingConfig"]["properties"]["max_epochs"]["description"]
        == "passes over the training images; null: 12, with finetune 5"
    )


def test_overrides_by_path():
    config = load_config(PARAMS, ["training.max_epochs=3", "model.preset=2012", "gate.max_parity_error=1e-4"])
    assert (config.training.max_epochs, config.model.preset, config.gate.max_parity_error) == (3, "2012", 1e-4)


def test_an_override_fills_an_empty_section(tmp_path):
    (tmp_path / "params.yaml").write_text("training:\n", encoding="utf-8")
    assert load_config(tmp_path / "params.yaml", ["training.max_epochs=3"]).training.max_epochs == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.max_epoch=3", ["--set", "unknown key training.max_epoch", "did you mean max_epochs?"]),
        ("trainin.max_epochs=3", ["--set", "unknown key trainin", "did you mean training?"]),
        ("training.max_epochs=many", ["--set", "training.max_epochs = 'many'", "valid integer"]),
        ("data.size=4", ["--set", "data.size = 4", "greater than or equal to 8"]),
        ("model.network=alexnett", ["--set", "model.network = 'alexnett'", "near it are alexnet"]),
        ("augmentation.flip=sideways", ["--set", "augmentation.flip = 'sideways'", "'auto'"]),
        ("data.size.x=3", ["--set data.size.x=3", "size is a value, not a section"]),
        ("max_epochs", ["--set max_epochs", "expected PATH=VALUE"]),
        ("data.path=[", ["--set data.path=[", "not a value"]),
        ("model.input_size=64", ["model.input_size=64 is larger than data.size=32"]),
    ],
)
def test_a_wrong_override_is_named(override, words):
    with pytest.raises(UserError) as error:
        load_config(PARAMS, [override])
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("data:\n  sise: 32\n", ["params.yaml", "unknown key data.sise", "did you mean size?"]),
        ("data:\n  size: big\n", ["params.yaml", "data.size = 'big'", "valid integer"]),
        ("data:\n  size: [\n", ["params.yaml:3", "not YAML"]),
        ("- data\n", ["params.yaml", "expected sections"]),
        ("data: 3\n", ["params.yaml", "data = 3"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, words):
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_config(path)
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_all_faults_are_told_at_once(tmp_path):
    (tmp_path / "params.yaml").write_text("data:\n  size: big\ngate:\n  min_accuracy: 2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.size.*gate\.min_accuracy"):
        load_config(tmp_path / "params.yaml")


def test_a_missing_file_says_where_to_go(tmp_path):
    with pytest.raises(UserError, match="or make one with `convoy init DIR`"):
        load_config(tmp_path / "params.yaml")


def test_what_a_project_adds_is_looked_for_in_its_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/params.yaml").write_text(
        "model: {network: 'my_net:build'}\nserving: {target: 'my_target:KIOSK'}\n"
    )
    (tmp_path / "mine/my_target.py").write_text("KIOSK = 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "mine/params.yaml")
    assert (
        str(caught.value) == f"model.network is my_net:build, and {tmp_path}/mine has no my_net.py: put the file there"
    )
    (tmp_path / "mine/my_net.py").write_text("from torch import nn\n\ndef build(num_classes, input_size): ...\n")
    assert load_config(tmp_path / "mine/params.yaml").model.network == "my_net:build"
