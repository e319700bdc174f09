"""Judging of a challenger: measures the model, and stores the results on its run."""

from typing import TYPE_CHECKING

from models.tracking.runs import PARITY_METRIC
from pipelines.comparisons import hang_comparison
from pipelines.config import Config
from pipelines.model_card import hang_card, note_of_gaps
from pipelines.workspace import MODELS, PREPARED, RAW, open_tracking

if TYPE_CHECKING:
    from models.judging.gate import Verdict
    from models.tracking.registry import ModelVersion, Registry

WORSE_SLICES, MAX_TAG = "convoy.worse_slices", 5000
"""Tag with the slices on which a run's model is surely worse, and MLflow's maximum length of a tag."""


def judge(
    config: Config, registry: "Registry", challenger: "ModelVersion", champion: "ModelVersion | None"
) -> "Verdict":
    """Judge a challenger by the gates and the champion. Its run gets verdict, slices, comparison and card."""
    from data.quality.image_traits import traits_of
    from models.judging.gate import as_rival, judge_challenger, predictions_of
    from models.judging.measured import measure
    from models.judging.slices import find_slices, worse_slices

    tracking = open_tracking(config)
    log, parity_error = tracking.log(challenger.run_id), tracking.get(challenger.run_id).metrics[PARITY_METRIC]
    old = measure(registry.download(champion, MODELS), RAW, PREPARED) if champion else None
    new = measure(registry.download(challenger, MODELS), RAW, PREPARED)
    predictions = predictions_of(new)
    slices = find_slices(predictions.hits, traits_of(RAW, PREPARED, "test"))
    verdict = judge_challenger(predictions, parity_error, as_rival(old), config.gate, slices, config.evaluation.metrics)
    if gaps := note_of_gaps():
        verdict = verdict.model_copy(update={"notes": (*verdict.notes, gaps)})
    log.verdict(verdict)
    log.record([one.model_dump(mode="json") for one in slices], "slices")
    log.tag({WORSE_SLICES: "; ".join(map(str, worse_slices(slices)))[:MAX_TAG] or "none"})
    hang_comparison(config, old, new, log)
    hang_card(config, challenger)
    return verdict
