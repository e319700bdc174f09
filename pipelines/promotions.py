"""What the gate and a person decide about the champion, and what the ledger keeps of that."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from core.errors import UserError
from pipelines.config import Config
from pipelines.workspace import LEDGER, open_registry, open_tracking
from serving.rollout import ledger
from serving.rollout.ledger import Entry, Release, What

if TYPE_CHECKING:
    from models.tracking.registry import ModelVersion


def promote_version(config: Config, version: str, why: str) -> str:
    """Make a version the champion because a person says so; gives the line that tells it.

    Raises:
        UserError: there is no such version, or no reason.

    """
    from models.tracking.registry import CHAMPION

    registry = open_registry(config)
    found, champion = registry.find(version.removeprefix("v")), registry.by_alias(CHAMPION)
    if found is None:
        raise UserError(f"{registry.name} has no version {version}: MLflow's page lists those that there are")
    if not why.strip():
        raise UserError("--why is empty: say in a few words why this version is to be the champion")
    if champion and champion.version == found.version:
        return f"{champion} is the champion already"
    registry.promote(found)
    metrics = open_tracking(config).get(found.run_id).metrics
    figures = {name: value for name, value in metrics.items() if name.startswith("test/")}
    record("promote", champion, found, why, figures)
    before = f", {champion} the previous one" if champion else ""
    return f"{found} is the champion{before}; `convoy package` packs it, `convoy deploy` brings it live"


def record(
    what: What,
    champion: "ModelVersion | None",
    challenger: "ModelVersion",
    why: str,
    figures: Mapping[str, float],
) -> None:
    """Write to the ledger what became of a challenger; a gate that decides the same again is not written again."""
    entry = Entry(
        what=what,
        before=_release(champion) if champion else None,
        to=_release(challenger),
        why=why,
        figures=figures,
    )
    if what == "promote" or not _is_told(entry):
        ledger.append(LEDGER, entry)


def _is_told(entry: Entry) -> bool:
    told = [one for one in ledger.read(LEDGER) if one.target is None]
    same = {"what", "before", "to", "why"}
    return bool(told) and told[-1].model_dump(include=same) == entry.model_dump(include=same)


def _release(version: "ModelVersion") -> Release:
    return Release(
        model_name=version.name,
        model_version=version.version,
        run_id=version.run_id,
        data_version=version.data_version,
    )
