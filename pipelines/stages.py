"""The trainings that one recipe stands for: a probe, and fine-tuning that starts from it."""

import logging

from models.recipes import FINETUNE
from pipelines.config import Config
from pipelines.workspace import open_tracking, training_job

_log = logging.getLogger("convoy")


def pending_stages(config: Config, data_version: str) -> tuple[Config, ...]:
    """Give the configurations of the trainings to do: from the last one on that has ended."""
    stages, tracking = config.stages, open_tracking(config)
    if len(stages) == 1:
        return stages
    ended = [index for index, one in enumerate(stages) if tracking.find_trained(training_job(one, data_version).key)]
    return stages[max(ended, default=0) :]


def improves_on_probe(config: Config, data_version: str, run_id: str) -> bool:
    """Whether fine-tuning has made the probe no worse on the validation images; True for every other recipe."""
    if config.training.recipe != FINETUNE:
        return True
    tracking = open_tracking(config)
    probe = tracking.find_trained(training_job(config, data_version).probe.key)
    if probe is None:
        return True
    accuracy, before = (tracking.log(one).best_accuracy() for one in (run_id, probe.run_id))
    if accuracy < before:
        _log.info("train: the probe stays: validation accuracy %.4f after fine-tuning, %.4f before", accuracy, before)
    return accuracy >= before
