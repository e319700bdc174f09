"""What Prefect starts by itself: deployments with a schedule, and one that events from outside trigger."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import PrefectException
from prefect.schedules import Cron, Interval
from prefect.types.entrypoint import EntrypointType

from core.errors import UserError, one_line
from pipelines.config import Config, override
from pipelines.operations.config import Schedule

DATA_EVENT = "convoy.data-changed"
"""The name of the event that starts `run-if-changed`."""
SCHEDULED = "convoy-schedule"
"""Tag of the deployments that params.yaml schedules."""
DEBOUNCE = timedelta(seconds=10)
"""Events that come within this time start one run, which starts so long after the first."""


def on_data_event() -> DeploymentEventTrigger:
    """Start a run for events from outside: one for those that come together."""
    return DeploymentEventTrigger(
        name=DATA_EVENT, expect={DATA_EVENT}, threshold=1, within=DEBOUNCE, schedule_after=DEBOUNCE
    )


def scheduled(config: Config, flows: Iterable[Any]) -> list[Any]:
    """Make a deployment of each schedule.

    Raises:
        UserError: an override of a schedule is not what is expected.

    """
    by_name = {flow.name: flow for flow in flows}
    return [
        by_name[one.flow].to_deployment(
            one.name,
            parameters={"config": override(config, one.overrides).model_dump(mode="json")},
            schedules=[_rhythm(one)],
            tags=[SCHEDULED],
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for one in config.automation.schedules
    ]


def _rhythm(one: Schedule) -> Any:
    if one.cron:
        return Cron(one.cron, timezone=one.timezone, slug=one.name)
    return Interval(timedelta(minutes=one.every_minutes or 0), timezone=one.timezone, slug=one.name)


def forget_schedules(config: Config) -> None:
    """Remove from Prefect the deployments of schedules that params.yaml no longer has."""
    wanted = {(one.flow, one.name) for one in config.automation.schedules}
    with get_client(sync_client=True) as client:
        tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[SCHEDULED]))
        for deployment in client.read_deployments(deployment_filter=tagged):
            if (client.read_flow(deployment.flow_id).name, deployment.name) not in wanted:
                client.delete_deployment(deployment.id)


def start_if_changed() -> None:
    """Start `run-if-changed` on the server.

    Raises:
        UserError: the server does not answer.

    """
    name = "run-if-changed/run-if-changed"
    try:
        with get_client(sync_client=True) as client:
            client.create_flow_run_from_deployment(client.read_deployment_by_name(name).id)
    except (HTTPError, PrefectException) as error:
        raise UserError(f"Prefect does not start {name}: {one_line(error)}", exit_code=1) from None
