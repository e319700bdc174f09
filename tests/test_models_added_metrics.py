"""Metrics that are measured where they are named: ours, and those of a file of the project."""

import numpy as np
import pytest
from sklearn.metrics import f1_score
from test_models_gate import NONE, predictions

from core.errors import UserError
from models.config import EvaluationConfig, GateConfig
from models.judging.evaluate import Predictions
from models.judging.gate import judge_challenger
from models.judging.metrics import evaluate
from pipelines.config import Config, default_config

ADDED = """
def first_class(predictions):
    return predictions.hits[predictions.labels == 0].mean()
"""
LIMITS = {"better_than_guessing": False, "min_class_accuracy": None}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(ADDED)
    return tmp_path


def test_macro_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.random((50, 4), dtype=np.float32), rng.integers(0, 4, 50)
    found = evaluate(Predictions(probabilities, labels, ("a", "b", "c", "d")), ["macro_f1"])
    expected = f1_score(labels, probabilities.argmax(axis=1), average="macro")
    assert found.metrics["test/macro_f1"] == pytest.approx(expected)
    assert found.figures == {"macro_f1": found.metrics["test/macro_f1"]}


def test_a_metric_is_measured_and_gated(project):
    metrics = ["mine:first_class"]
    found = evaluate(predictions([90, 60]), metrics)
    assert (found.metrics["test/first_class"], found.accuracy) == (0.9, 0.75)
    for limit, outcome in ((0.9, "passed"), (0.91, "failed")):
        config = GateConfig.model_validate(LIMITS | {"min_metrics": {"first_class": limit}})
        verdict = judge_challenger(predictions([90, 60]), 0, NONE, config, metrics=metrics)
        assert verdict.outcome == outcome
        assert verdict.figures["gate/test/first_class"] == 0.9
    config = GateConfig.model_validate(LIMITS | {"max_metrics": {"loss": 0.1}})
    assert judge_challenger(predictions([90, 60]), 0, NONE, config).failures.startswith("test/loss 0.5")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "def first_class(predictions): return 'much'",
            "mine:first_class, which gave a str: expected numbers.Real",
        ),
        ("def first_class(predictions): return float('nan')", "which gave nan: expected a finite number"),
        (
            "def first_class(predictions): return 1 / 0",
            "mine.py:1: ZeroDivisionError: division by zero (evaluation.m",
        ),
        ("def first_class(): ...", "which cannot be called as first_class(predictions): too many positional arguments"),
    ],
)
def test_what_is_no_metric_is_told_in_one_line(project, text, words):
    (project / "mine.py").write_text(text)
    with pytest.raises(UserError) as caught:
        evaluate(predictions([90, 60]), ["mine:first_class"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "gate.min_metrics={macro_f1: 0.5}",
            "gate.min_metrics has macro_f1, which nothing measures: there are acc",
        ),
        ("evaluation.metrics=[macro_f1, mine:macro_f1]", "there are two figures named macro_f1"),
        ("evaluation.metrics=[mine:loss]", "there are two figures named loss"),
        ("evaluation.metrics=[f1]", "nothing has this name; there are macro_f1; yours is my_file:name"),
        ("gate.min_metrics={accuracy: .nan}", "finite number"),
    ],
)
def test_a_wrong_name_is_found_at_the_door(override, words):
    with pytest.raises(UserError) as caught:
        default_config([override])
    assert words in str(caught.value)


def test_figures_that_may_be_gated_are_those_that_are_measured():
    assert EvaluationConfig(metrics=("mine:first_class",)).figures[-2:] == ("worst_class_accuracy", "first_class")
    evaluation, gate = {"metrics": ["macro_f1"]}, {"min_metrics": {"macro_f1": 0.5}, "max_metrics": {"loss": 1}}
    assert Config.model_validate({"evaluation": evaluation, "gate": gate}).gate.max_metrics == {"loss": 1.0}
