"""Stages of a recipe: a probe, and fine-tuning that starts from the probe."""

import logging

from models.tracking.registry import CHAMPION
from models.tracking.runs import TrainedRun
from models.training.recipes import FINETUNE
from pipelines.config import Config
from pipelines.workspace import open_registry, open_tracking, training_job

_log = logging.getLogger("convoy")


def pending_stages(config: Config, data_version: str) -> tuple[Config, ...]:
    """Return the configurations of the stages to run, from the last finished stage on."""
    stages, tracking = config.stages, open_tracking(config)
    if len(stages) == 1:
        return stages
    ended = [index for index, one in enumerate(stages) if tracking.find_trained(training_job(one, data_version).key)]
    return stages[max(ended, default=0) :]


def champion_probe(config: Config, data_version: str) -> TrainedRun | None:
    """Return the probe from which this fine-tuning starts, or None if the champion is another model."""
    if config.training.recipe != FINETUNE:
        return None
    probe = open_tracking(config).find_trained(training_job(config, data_version).probe.key)
    champion = open_registry(config).by_alias(CHAMPION)
    return probe if probe and champion and champion.run_id == probe.run_id else None


def improves_on_probe(config: Config, data_version: str, run_id: str) -> bool:
    """Whether fine-tuning is no worse than its probe on validation images. True if the probe is not the champion."""
    tracking, probe = open_tracking(config), champion_probe(config, data_version)
    if probe is None:
        return True
    accuracy, before = (tracking.log(one).best_accuracy() for one in (run_id, probe.run_id))
    if accuracy < before:
        _log.info("train: the probe stays: validation accuracy %.4f after fine-tuning, %.4f before", accuracy, before)
    return accuracy >= before
