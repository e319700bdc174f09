"""What happens without a person: what starts when, and what is kept for how long."""

import re
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from core.sections import Section

Days = float | None

CRON_FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
"""Minute, hour, day of the month, month, day of the week."""
CRON_NAMES = {
    name: str(number)
    for names, first in (("jan feb mar apr may jun jul aug sep oct nov dec", 1), ("sun mon tue wed thu fri sat", 0))
    for number, name in enumerate(names.split(), first)
}


class Schedule(Section):
    """When a flow starts, and with which parameters."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    flow: Literal["run-pipeline", "run-if-changed", "prepare-data", "train-model", "measure-drift", "clean-project"] = (
        "run-pipeline"
    )
    cron: str | None = None
    every_minutes: float | None = Field(None, ge=1)
    timezone: str = "UTC"
    overrides: tuple[str, ...] = ()

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, line: str | None) -> str | None:
        if line is not None:
            check_cron(line)
        return line

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"no time zone {name!r} is known: write one as Europe/Vienna or UTC") from None
        return name

    @model_validator(mode="after")
    def _has_one_rhythm(self) -> "Schedule":
        if (self.cron is None) == (self.every_minutes is None):
            raise ValueError(f"schedule {self.name}: give either cron or every_minutes")
        return self


def check_cron(line: str) -> None:
    """Look whether a line is cron's: five fields of numbers, names, ranges, lists and steps.

    Raises:
        ValueError: it is not; says which field.

    """
    fields = line.lower().split()
    if len(fields) != len(CRON_FIELDS):
        raise ValueError(f"{line!r} is no cron line: expected five fields, such as '0 3 * * 1-5'")
    for field, (low, high) in zip(fields, CRON_FIELDS, strict=True):
        for part in field.split(","):
            named = re.sub(r"[a-z]{3}", lambda name: CRON_NAMES.get(name[0], name[0]), part)
            found = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/(\d+))?", named)
            numbers = [int(number) for number in found.groups()[:2] if number] if found else [-1]
            in_range = all(low <= number <= high for number in numbers)
            if found is None or not in_range or numbers != sorted(numbers) or found[3] == "0":
                raise ValueError(f"{line!r} is no cron line: {part!r} is not between {low} and {high}")


class AutomationConfig(Section):
    """What starts by itself where `convoy up` or a worker runs."""

    schedules: tuple[Schedule, ...] = ()
    """flows that start at set times, each with name, flow, cron or every_minutes, timezone and overrides"""
    watch: bool = False
    """look at the folder data.path, and start the pipeline where its images have changed"""
    watch_seconds: float = Field(10, gt=0)
    """seconds between two looks; the pipeline starts when two looks in a row have found the same"""
    max_runs_per_day: int = Field(24, ge=0)
    """runs within 24 hours that the watched folder and events may start; those with nothing changed do not count"""

    @field_validator("schedules")
    @classmethod
    def _names_differ(cls, schedules: tuple[Schedule, ...]) -> tuple[Schedule, ...]:
        names = [one.name for one in schedules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two schedules have the name {min(twice)}: give each its own")
        return schedules


class RetentionConfig(Section):
    """How long files are kept that a project can do without; what is in use stays in any case."""

    runs_days: Days = Field(None, gt=0)
    """days that a run is kept that registered no model and is of other data than today's; null: forever"""
    checkpoints_days: Days = Field(None, gt=0)
    """days that the checkpoints of a training are kept; for a model in use, the best one stays; null: forever"""
    features_days: Days = Field(None, gt=0)
    """days that features of images are kept, which a probe would compute again; null: forever"""
    bentos: int | None = Field(None, ge=1)
    """number of packaged models that are kept for each target, the newest first; null: all"""
    copies_days: Days = Field(30, gt=0)
    """days that copies are kept of what MLflow or the DVC remote has too; null: forever"""
    logs_days: Days = Field(30, gt=0)
    """days that logs of servers are kept; null: forever"""
