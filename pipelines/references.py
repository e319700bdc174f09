"""References to a model on the command line: a version, an alias, or the run that trained the model."""

from typing import TYPE_CHECKING

from core.errors import UserError
from pipelines.config import Config
from pipelines.nearest import nearest
from pipelines.workspace import open_registry

if TYPE_CHECKING:
    from models.tracking.registry import ModelVersion, Registry

MIN_RUN_LETTERS = 6
"""Minimum length of an abbreviated run id. The abbreviation must be unique."""


def find_version(config: Config, reference: str) -> "ModelVersion":
    """Find a registered version by its number (`3`, `v3`), an alias, or the beginning of its run's id.

    Raises:
        UserError: there is no such version. The message gives similar names.

    """
    registry = open_registry(config)
    return named_version(registry, reference) or _refuse(registry, reference)


def named_version(registry: "Registry", reference: str) -> "ModelVersion | None":
    """Find a registered version like `find_version`, or return None."""
    number = reference.removeprefix("v")
    if number.isdecimal() and len(number) < 10:
        return registry.find(number)
    if len(reference) >= MIN_RUN_LETTERS and set(reference) <= set("0123456789abcdef"):
        found = [version for run, version in registry.versions().items() if run.startswith(reference)]
        return registry.get(found[0]) if len(found) == 1 else None
    return registry.by_alias(reference)


def _refuse(registry: "Registry", reference: str) -> "ModelVersion":
    versions = registry.versions()
    if not versions:
        raise UserError(f"{registry.name} has no version yet: train one with `convoy run`")
    known = [*registry.aliases(), *(f"v{version}" for version in versions.values()), *versions]
    raise UserError(f"{registry.name} has no version, alias or registered run {reference!r}{nearest(reference, known)}")
