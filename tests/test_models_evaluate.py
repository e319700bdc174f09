import numpy as np
import pytest

from models.config import GateConfig
from models.evaluate import Evaluation, Predictions
from models.gate import Rival, judge

#                         a    b    c    d    e    f
PROBABILITIES = np.array([[.50, .20, .10, .10, .05, .05],  # a, right
                          [.05, .60, .10, .10, .10, .05],  # taken for b, is a: rank 4 or 5 of 6
                          [.10, .70, .05, .05, .05, .05],  # b, right
                          [.01, .90, .03, .02, .02, .02]], dtype=np.float32)  # fmt: skip
LABELS = np.array([0, 5, 1, 0])
CLASSES = tuple("abcdef")


def test_figures_by_hand():
    evaluation = Predictions(PROBABILITIES, LABELS, CLASSES).summarize()
    assert evaluation.num_images == 4
    assert evaluation.accuracy == 0.5
    # f has 0.05 in the second row, where four classes have more and one as much; a in the last is the sixth
    assert evaluation.top5_accuracy == 0.75
    assert evaluation.class_accuracy == {"a": 0.5, "b": 1.0, "f": 0.0}
    assert evaluation.loss == pytest.approx(-np.log([0.5, 0.05, 0.7, 0.01]).mean(), rel=1e-5)
    assert evaluation.metrics["test/worst_class_accuracy"] == 0


def test_confusion_and_the_surest_errors():
    predictions = Predictions(PROBABILITIES, LABELS, CLASSES)
    counts = predictions.confusion()
    assert counts.sum() == 4
    assert (counts[0, 0], counts[0, 1], counts[1, 1], counts[5, 1]) == (1, 1, 1, 1)
    assert predictions.worst_errors(5).tolist() == [3, 1]
    assert predictions.worst_errors(1).tolist() == [3]


def evaluation(accuracy, worst=0.5):
    return Evaluation(num_images=10, accuracy=accuracy, top5_accuracy=1, loss=1, class_accuracy={"a": 0.9, "b": worst})


GATE = GateConfig(min_accuracy=0.5, min_class_accuracy=0.25, max_regression=0.125, max_parity_error=1e-3)
NONE = Rival(None, "there is none")


@pytest.mark.parametrize(
    ("accuracy", "worst", "parity", "rival", "failed"),
    [
        (0.5, 0.25, 1e-3, NONE, []),
        (0.49, 0.25, 1e-3, NONE, ["test/accuracy"]),
        (0.5, 0.24, 1e-3, NONE, ["worst class"]),
        (0.5, 0.25, 2e-3, NONE, ["ONNX against torch"]),
        (0.75, 0.25, 0, Rival(0.875), []),
        (0.74, 0.25, 0, Rival(0.875), ["against the champion"]),
        (0.1, 0.1, 1, Rival(1.0), ["test/accuracy", "worst class", "ONNX against torch", "against the champion"]),
    ],
)
def test_each_gate_passes_at_its_limit_and_fails_beyond(accuracy, worst, parity, rival, failed):
    verdict = judge(evaluation(accuracy, worst), parity, rival, GATE)
    assert [check.name for check in verdict.checks if not check.passed] == failed
    assert verdict.passed == (not failed)
    assert all(name in verdict.failures for name in failed)


def test_a_verdict_says_why_nothing_was_compared():
    assert judge(evaluation(1), 0, NONE, GATE).notes == ("not compared with a champion: there is none",)


def test_a_figure_that_is_no_number_fails():
    assert not judge(evaluation(float("nan")), float("nan"), Rival(0.5), GATE).passed
