"""What happens, in what order. What has not changed is skipped, and says why."""

from prefect import flow

from pipelines import tasks
from pipelines.config import Config
from serving.package import Bento


@flow(name="prepare-data", persist_result=False)
def prepare_data(config: Config) -> str:
    """Bring the data up to date, keep it in the remote, and report on it; returns the data version."""
    data_version = tasks.reproduce_data(config)
    tasks.push_data()
    tasks.report_data(data_version)
    return data_version


@flow(name="train-model", persist_result=False)
def train_model(config: Config, data_version: str) -> str:
    """Train one network on one data version and let it through the gate; returns the version of the champion."""
    run_id = tasks.train(config, data_version)
    tasks.evaluate(config, data_version, run_id)
    version = tasks.register(config, data_version, run_id)
    tasks.gate(config, version)
    return version


@flow(name="package-model", persist_result=False)
def package_model(config: Config) -> Bento:
    """Pack the champion as an endpoint that has answered a request."""
    bento = tasks.package(config)
    tasks.verify(bento)
    return bento


@flow(name="run-pipeline", persist_result=False)
def run_pipeline(config: Config) -> Bento:
    """From labelled images to a served champion."""
    data_version = prepare_data(config)
    train_model(config, data_version)
    return package_model(config)
