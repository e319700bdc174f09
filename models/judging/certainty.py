"""Which answers of a model are uncertain: chosen on the validation images of its training."""

import logging

from data.batches.shards import PreparedImages
from models.config import GateConfig
from models.exported.export import ServedNetwork, TorchPredictor
from models.exported.manifest import Certainty
from models.judging.calibration import choose_certainty, images_needed
from models.judging.evaluate import Predictions, predict
from models.training.job import TrainingJob

_log = logging.getLogger("convoy")


def predict_validation(model: TorchPredictor, job: TrainingJob) -> Predictions:
    """Let a model predict the validation images of a job."""
    images = PreparedImages(job.prepared, job.manifest, "val")
    return predict(model, images, job.manifest.classes, job.input_size)


def certainty_of(network: ServedNetwork, job: TrainingJob, gate: GateConfig) -> Certainty | None:
    """Choose what is uncertain, and say what that comes to."""
    found = choose_certainty(predict_validation(TorchPredictor(network), job), gate.min_precision)
    if found is None:
        needed, there_are = images_needed(gate.min_precision), job.manifest.num_in("val")
        _log.info("uncertain: no threshold, %d validation images are too few (%d are needed)", there_are, needed)
        return None
    certain, right = (f"{100 * share:.1f} %" for share in (found.coverage, found.precision))
    near = "" if found.precision >= gate.min_precision else f", as near as it gets to {100 * gate.min_precision:g} %"
    worth = f"of the validation images {certain} are certain, and {right} of these right{near}"
    _log.info("uncertain: below a probability of %.3f; %s", found.threshold, worth)
    return found
