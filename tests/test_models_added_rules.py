"""Rules that may refuse a challenger where they are named: ours, and those of a file of the project."""

import pytest
from test_models_gate import NONE, predictions

from core.errors import UserError
from models.config import GateConfig
from models.judging.class_regression import no_class_gets_worse
from models.judging.gate import Rival, judge_challenger
from pipelines.config import default_config

LIMITS = {"better_than_guessing": False, "min_class_accuracy": None}
ADDED = """
def last_class(challenger, champion):
    share = challenger.hits[challenger.labels == 1].mean()
    return None if share > 0.8 else f"only {share:.2f} of the\\n dogs"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(ADDED)
    return tmp_path


def test_a_rule_refuses_in_one_line(project):
    config = GateConfig.model_validate(LIMITS | {"rules": ["mine:last_class"]})
    verdict = judge_challenger(predictions([90, 60]), 0, NONE, config)
    assert (verdict.outcome, verdict.failures) == ("failed", "last_class: only 0.60 of the dogs")
    assert ("last_class", "last_class: only 0.60 of the dogs", "failed") in verdict.rows
    verdict = judge_challenger(predictions([90, 90]), 0, NONE, config)
    assert (verdict.outcome, verdict.rows[-1]) == ("passed", ("last_class", "last_class", "passed"))


def test_a_class_that_gets_worse_is_named():
    assert no_class_gets_worse(predictions([90, 60]), None) is None
    assert no_class_gets_worse(predictions([90, 60]), predictions([60, 62])) is None, "two images are chance"
    expected = "surely less accurate than the champion: 'dog' 0.9000 -> 0.6000"
    assert no_class_gets_worse(predictions([90, 60]), predictions([60, 90])) == expected
    config = GateConfig.model_validate(LIMITS | {"rules": ["no_class_gets_worse"]})
    verdict = judge_challenger(predictions([95, 60]), 0, Rival(predictions([50, 90])), config)
    assert verdict.comparison.difference > 0
    assert verdict.failures == f"no_class_gets_worse: {expected}"


def test_a_rule_that_says_neither_yes_nor_no_is_told(project):
    (project / "mine.py").write_text("def last_class(challenger, champion): return True")
    config = GateConfig.model_validate(LIMITS | {"rules": ["mine:last_class"]})
    with pytest.raises(UserError, match=r"^gate\.rules is mine:last_class, which gave a bool: expected str or N"):
        judge_challenger(predictions([90, 60]), 0, NONE, config)


def test_a_rule_that_is_not_there_is_found_at_the_door():
    with pytest.raises(UserError, match="nothing has this name; there are no_class_gets_worse; yours is my_file:name"):
        default_config(["gate.rules=[none]"])
