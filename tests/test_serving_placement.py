"""What an endpoint runs on: targets of the user's, and runtimes that share a precision."""

import pytest
from test_serving_bento import quick_build  # noqa: F401 - a fixture
from test_serving_classifier import make_model

from core.errors import UserError
from serving.config import ServingConfig
from serving.packaging.bento import build_bento, find_bento, packed_bento
from serving.packaging.placement import load_target
from serving.targets import TARGETS

MINE = """
from dataclasses import replace
from serving.targets import EDGE, ONNXRUNTIME, Runtime

JETSON = replace(EDGE, memory_mb=512, threads=2)
CPU = EDGE
TWO = replace(EDGE, runtimes=(Runtime("fp32", "mine:Predictor", "model.onnx", 0.001), ONNXRUNTIME))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_ours_are_the_rows_of_the_table():
    for name, target in TARGETS.items():
        assert load_target(ServingConfig(target=name)) is target
        assert ServingConfig(target=name).target_name == name


def test_a_target_of_the_users_is_packed_with_its_values(project, quick_build):  # noqa: F811
    model, config, store = make_model(project / "model"), ServingConfig(target="mine:JETSON"), project / "store"
    bento = build_bento(model, config, store)
    assert (bento.target, bento.tag.partition(":")[2].rpartition("-")[0]) == ("jetson", "3-jetson")
    assert find_bento(store, bento.model_name, "3", "jetson") == bento == packed_bento(model, config, store)
    (project / "mine.py").write_text(f"# Of the kitchen.\n{MINE}")
    assert build_bento(model, config, store) == bento
    (project / "mine.py").write_text(MINE.replace("threads=2", "threads=3"))
    assert build_bento(model, config, store).tag != bento.tag
    assert len(quick_build) == 2


def test_runtimes_of_one_precision_do_not_take_each_others_place(project, quick_build):  # noqa: F811
    model, tags = make_model(project / "model"), set()
    for runtimes in ("(ONNXRUNTIME,)", "(replace(ONNXRUNTIME, tolerance=0.1),)"):
        (project / "mine.py").write_text(MINE.replace("threads=2", f"runtimes={runtimes}"))
        tags.add(build_bento(model, ServingConfig(target="mine:JETSON"), project / "store").tag)
    assert len(tags) == 2


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("mine:CPU", ("", ""), "serving.target is mine:CPU, and cpu is one of ours: rename yours"),
        ("mine:TWO", ("", ""), "serving.target is mine:TWO, whose runtime mine:Predictor is in no installed package"),
        (
            "mine:JETSON",
            ("replace(EDGE, memory_mb=512, threads=2)", "3"),
            "which gave an int: expected serving.tar",
        ),
        (
            "mine:JETSON",
            ("memory_mb=512", "batch_sizes=(4, 2)"),
            "mine.py:5: ValidationError: 1 validation error",
        ),
        ("mine:JETSON", ("memory_mb=512", "memory=512"), "mine.py:5: ValidationError: 1 validation error"),
    ],
)
def test_what_is_no_target_is_told_in_one_line(project, name, change, words):
    (project / "mine.py").write_text(MINE.replace(*change))
    with pytest.raises(UserError) as caught:
        load_target(ServingConfig(target=name))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
