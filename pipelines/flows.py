"""Flows: which steps run, in which order. Unchanged steps are skipped, and log the reason.

A command locks the workspace before it starts a flow. A flow that was triggered in Prefect waits for the lock.
"""

import logging
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelled, Completed

from pipelines import tasks
from pipelines.config import Config
from pipelines.operations.automatic import count_run, reasons_to_run
from pipelines.operations.clean import clean
from pipelines.operations.notices import tell
from pipelines.operations.receivers import Event
from pipelines.training_stages import champion_probe, improves_on_probe, pending_stages
from pipelines.workspace import exclusive, has_champion, require_champion, require_data_version, settle_runs
from serving.packaging.bento import Bento
from serving.rollout.ledger import Entry


def _let_our_log_speak(flow: Any, flow_run: Any, state: Any) -> None:  # noqa: ARG001 - what Prefect calls it with
    """Log the reasons also if the flow was triggered in Prefect, and not by our command."""
    logging.getLogger("convoy").setLevel(logging.INFO)


def _end_its_run(flow: Any, flow_run: Any, state: Any) -> None:  # noqa: ARG001 - what Prefect calls it with
    """End the MLflow run of a flow whose process died. Prefect calls this in the parent process."""
    settle_runs(Config.model_validate(flow_run.parameters["config"]))


def _call_ctrl_c_cancelled(flow: Any, flow_run: Any, state: Any) -> None:  # noqa: ARG001 - what Prefect calls it with
    """Mark the flow as cancelled after Ctrl-C, which Prefect takes for a crash."""
    if "interrupt signal" in (state.message or ""):
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelled(message="stopped by Ctrl-C"), force=True)


def _tell_of_the_end(flow: Any, flow_run: Any, state: Any) -> None:
    """Tell people of a flow that has failed or crashed; of one that a flow has called, its caller tells."""
    is_crash = state.type == StateType.CRASHED
    if flow_run.parent_task_run_id or (is_crash and "interrupt signal" in (state.message or "")):
        return
    what: Event = "crash" if is_crash else "failure"
    tell(what, f"{what} of {flow.name}", f"{flow.name} ({flow_run.name}, {flow_run.id}): {state.message}")


HOOKS: dict[str, Any] = {
    "persist_result": False,
    "on_running": [_let_our_log_speak],
    "on_failure": [_tell_of_the_end],
    "on_crashed": [_call_ctrl_c_cancelled, _tell_of_the_end],
}
"""What all flows have in common."""


@flow(name="prepare-data", **HOOKS)
@exclusive(waits=True)
def prepare_data(config: Config, then_train: bool = False) -> str:
    """Bring the data up to date, push it to the DVC remote, and report on it. Returns the data version."""
    data_version = tasks.reproduce_data(config, then_train=then_train)
    tasks.push_data()
    tasks.report_data(data_version)
    return data_version


@flow(
    name="train-model",
    **(HOOKS | {"on_crashed": [_end_its_run, *HOOKS["on_crashed"]]}),
)
@exclusive(waits=True)
def train_model(config: Config, data_version: str | None = None, goes_on: bool = False) -> None:
    """Train one network on the prepared data, and submit the model to the gate.

    If the recipe has several stages, each stage is trained and judged in turn. A refused model is no failure if another
    stage follows, here or in the caller (`goes_on`), or if the champion is the previous stage.
    """
    data_version = data_version or require_data_version()
    tasks.check_source(config, "prepared")
    stages = pending_stages(config, data_version)
    for stage in stages:
        run_id = tasks.train(stage, data_version)
        if improves_on_probe(stage, data_version, run_id):
            tasks.evaluate(stage, data_version, run_id)
            version = tasks.register(stage, data_version, run_id)
            may_fail = goes_on or stage is not stages[-1] or champion_probe(stage, data_version) is not None
            tasks.gate(stage, version, may_fail=may_fail)


@flow(name="package-model", **HOOKS)
@exclusive(waits=True)
def package_model(config: Config) -> Bento:
    """Package the champion as a Bento, and verify the answer to a request."""
    bento = tasks.package(config)
    tasks.verify(bento)
    return bento


@flow(name="deploy-model", **HOOKS)
@exclusive(waits=True)
def deploy_model(
    config: Config, version: str | None = None, percent: float | None = None, why: str = ""
) -> Entry | None:
    """Deploy the champion, or a version. Returns the ledger's entry, or None if the version was live already."""
    bento = tasks.package(config, version)
    image = tasks.containerize(config, bento)
    return tasks.roll_out(config, image, percent, why)


@flow(
    name="run-pipeline",
    **(HOOKS | {"on_crashed": [_end_its_run, *HOOKS["on_crashed"]]}),
)
@exclusive(waits=True)
def run_pipeline(config: Config) -> Bento:
    """From labelled images to a served champion. Each stage of the training is packaged as soon as it is champion."""
    tasks.check_source(config, "configured")
    data_version = prepare_data(config, then_train=True)
    *first, last = pending_stages(config, data_version)
    for stage in first:
        train_model(stage, data_version, goes_on=True)
        if has_champion(stage):
            package_model(stage)
    train_model(last, data_version)
    return package_model(last)


@flow(name="run-if-changed", **HOOKS)
@exclusive(waits=True)
def run_if_changed(config: Config) -> Any:
    """Run the pipeline where something has changed, as often as `automation.max_runs_per_day` allows.

    Whoever starts this flow says only that something may have changed.
    """
    reasons = reasons_to_run(config)
    if not reasons:
        return Completed(message="nothing has changed since the last run")
    if not count_run(config.automation.max_runs_per_day):
        return Completed(message=f"automation.max_runs_per_day is reached; left for later: {'; '.join(reasons)}")
    run_pipeline(config)
    return Completed(message="; ".join(reasons)[:1000])


@flow(name="measure-drift", **HOOKS)
def measure_drift(config: Config) -> Any:
    """Compare what endpoints here have sampled with the champion's test images; receivers are told of drift."""
    from pipelines.operations.drift import measure_drift as compare_samples

    _, folder = require_champion(config)
    found = compare_samples(folder, [])
    names = ", ".join(one.name for one in found.alarms) or "nothing"
    return Completed(message=f"{names} has drifted: {found.num_images:,} images")


@flow(name="clean-project", **HOOKS)
def clean_project(config: Config) -> Any:
    """Remove what `retention` no longer keeps."""
    with exclusive(waits=True):
        removals = clean(config, dry_run=False)
    return Completed(message=f"{len(removals)} removed, {sum(one.num_bytes for one in removals) / 1e6:,.1f} MB freed")
