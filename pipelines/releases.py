"""Deployment and rollback: first the requests, then the registry's aliases `champion` and `previous`."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core.errors import UserError, one_line
from pipelines.config import Config
from pipelines.operations.notices import tell_entry
from pipelines.workspace import LEDGER, open_registry, open_site
from serving.rollout import deploy, ledger
from serving.rollout.ledger import Entry, Release

if TYPE_CHECKING:
    from models.tracking.registry import Registry

_log = logging.getLogger("convoy")


def roll_out(
    config: Config, release: Release, why: str, figures: Mapping[str, float], percent: float | None = None
) -> Entry | None:
    """Replace the live release. Returns the ledger's entry, or None if the release was live already."""
    entry = deploy.roll_out(open_site(config), release, why=why, figures=figures, percent=percent)
    if entry:
        tell_entry(entry)
    with _optional():
        _name_previous(open_registry(config), config.serving.target_name)
    return entry


def roll_back(config: Config, why: str) -> Entry:
    """Bring back the previous release, and make it the champion if it replaces the champion.

    Does not lock the workspace, because a rollback must be possible during a training.
    """
    entry = deploy.roll_back(open_site(config), why or "asked for")
    tell_entry(entry)
    with _optional():
        registry = open_registry(config)
        _restore_champion(registry, entry)
        _name_previous(registry, config.serving.target_name)
    return entry


@contextmanager
def _optional() -> Iterator[None]:
    """Continue if the registry does not answer, because requests do not depend on aliases."""
    try:
        yield
    except UserError as error:
        _log.warning("registry: the aliases stay as they are: %s", one_line(error))


def _restore_champion(registry: "Registry", entry: Entry) -> None:
    from models.tracking.registry import CHAMPION

    left, back = entry.before, entry.to
    assert back is not None
    champion = registry.by_alias(CHAMPION)
    if champion is None or left is None or (left.model_name, left.model_version) != (champion.name, champion.version):
        _log.info("registry: %s stays champion: it is not what was rolled back", champion or "nothing")
    elif back.model_version != left.model_version:
        _log.info("registry: %s is the champion again", registry.restore(back.model_version))


def _name_previous(registry: "Registry", target: str) -> None:
    """Give the alias `previous` to the version that was live before the current version, if there is one."""
    live = ledger.history(ledger.read(LEDGER, target))
    if not live or live[-1].model_name != registry.name:
        return
    versions = [release.model_version for release in live if release.model_name == registry.name]
    previous = next((version for version in reversed(versions) if version != versions[-1]), None)
    registry.name_previous(previous)
    _log.info("registry: %s", f"v{previous} is the previous version" if previous else "there is no previous version")
