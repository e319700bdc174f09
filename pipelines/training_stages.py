"""The trainings that one recipe stands for: a probe, and fine-tuning that starts from it."""

import logging

from models.tracking.registry import CHAMPION
from models.tracking.runs import TrainedRun
from models.training.recipes import FINETUNE
from pipelines.config import Config
from pipelines.workspace import open_registry, open_tracking, training_job

_log = logging.getLogger("convoy")


def pending_stages(config: Config, data_version: str) -> tuple[Config, ...]:
    """Give the configurations of the trainings to do: from the last one on that has ended."""
    stages, tracking = config.stages, open_tracking(config)
    if len(stages) == 1:
        return stages
    ended = [index for index, one in enumerate(stages) if tracking.find_trained(training_job(one, data_version).key)]
    return stages[max(ended, default=0) :]


def champion_probe(config: Config, data_version: str) -> TrainedRun | None:
    """Give the probe that this fine-tuning has started from, where its model is the champion."""
    if config.training.recipe != FINETUNE:
        return None
    probe = open_tracking(config).find_trained(training_job(config, data_version).probe.key)
    champion = open_registry(config).by_alias(CHAMPION)
    return probe if probe and champion and champion.run_id == probe.run_id else None


def improves_on_probe(config: Config, data_version: str, run_id: str) -> bool:
    """Whether a champion that is the probe of this fine-tuning is no better on the validation images."""
    tracking, probe = open_tracking(config), champion_probe(config, data_version)
    if probe is None:
        return True
    accuracy, before = (tracking.log(one).best_accuracy() for one in (run_id, probe.run_id))
    if accuracy < before:
        _log.info("train: the probe stays: validation accuracy %.4f after fine-tuning, %.4f before", accuracy, before)
    return accuracy >= before
