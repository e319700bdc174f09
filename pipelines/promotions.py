"""Decisions about the champion, by the gate or by a person, and their entries in the ledger."""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core.errors import UserError
from pipelines.config import Config
from pipelines.operations.notices import tell_entry
from pipelines.workspace import LEDGER, open_registry, open_tracking
from serving.rollout import ledger
from serving.rollout.ledger import Entry, Release, What

if TYPE_CHECKING:
    from models.judging.gate import Verdict
    from models.tracking.registry import ModelVersion, Registry

REFUSED = "refused: "
"""How the verdict of a person who refuses a version begins, in the ledger and on the run."""


def promote_version(config: Config, version: str, why: str) -> str:
    """Make a version the champion by a person's decision. Returns a message for this person.

    Raises:
        UserError: there is no such version, or `why` is empty.

    """
    from models.tracking.registry import CHAMPION

    registry = open_registry(config)
    with promoting():
        found, champion = _require(registry, version, why), registry.by_alias(CHAMPION)
        if champion and champion.version == found.version:
            return f"{champion} is the champion already"
        registry.promote(found)
        record("promote", champion, found, why, _figures(config, found))
    before = f", {champion} the previous one" if champion else ""
    return f"{found} is the champion{before}; `convoy package` packs it, `convoy deploy` brings it live"


def approve_version(config: Config, version: str, why: str) -> str:
    """Make a version the champion that the gate lets wait for a person; gives the line that tells it.

    Raises:
        UserError: there is no such version or no reason, or the version does not wait.

    """
    _require_waiting(config, version, why)
    return promote_version(config, version, f"approved: {why}")


def refuse_version(config: Config, version: str, why: str) -> str:
    """Refuse a version that the gate lets wait for a person; gives the line that tells it.

    Raises:
        UserError: there is no such version or no reason, or the version does not wait.

    """
    from models.tracking.registry import CHAMPION
    from models.tracking.runs import VERDICT

    found, champion = _require_waiting(config, version, why), open_registry(config).by_alias(CHAMPION)
    record("refuse", champion, found, f"{REFUSED}{why}", _figures(config, found))
    open_tracking(config).log(found.run_id).tag({VERDICT: f"{REFUSED}{why}"})
    return f"{found} is refused; {_stays(champion)}"


def _require_waiting(config: Config, version: str, why: str) -> "ModelVersion":
    from models.tracking.runs import VERDICT

    found = _require(open_registry(config), version, why)
    verdict = open_tracking(config).get(found.run_id).tags.get(VERDICT, "not judged")
    if not verdict.startswith("waits"):
        raise UserError(
            f"{found} does not wait for a person; the gate: {verdict}. `convoy promote {found.version} --why TEXT` "
            "makes it the champion whatever the gate says"
        )
    return found


def _require(registry: "Registry", version: str, why: str) -> "ModelVersion":
    found = registry.find(version.removeprefix("v"))
    if found is None:
        raise UserError(f"{registry.name} has no version {version}: MLflow's page lists those that there are")
    if not why.strip():
        raise UserError("--why is empty: say in a few words why, for the ledger")
    return found


def _figures(config: Config, version: "ModelVersion") -> dict[str, float]:
    metrics = open_tracking(config).get(version.run_id).metrics
    return {name: value for name, value in metrics.items() if name.startswith("test/")}


def person_refused(config: Config, challenger: "ModelVersion", champion: "ModelVersion | None") -> str | None:
    """Say that a person has refused a version, which the gate then judges no more; None if nobody has."""
    from models.tracking.runs import VERDICT

    verdict = open_tracking(config).get(challenger.run_id).tags.get(VERDICT, "")
    if not verdict.startswith(REFUSED):
        return None
    change = f"`convoy promote {challenger.version} --why TEXT` makes it the champion all the same"
    return f"gate: {challenger} was refused by a person: {verdict.removeprefix(REFUSED)}; {_stays(champion)}; {change}"


def gate_refused(verdict: "Verdict", challenger: "ModelVersion", champion: "ModelVersion | None") -> str:
    """Say why the gate did not promote a version, and what a person can do."""
    if verdict.outcome == "failed":
        return f"gate: {challenger} did not pass: {verdict.failures}; {_stays(champion)}"
    decide = f"decide with `convoy approve {challenger.version} --why TEXT`"
    return f"gate: {challenger} waits: {verdict.waits_for}; {_stays(champion)}; {decide}"


def _stays(champion: "ModelVersion | None") -> str:
    return f"{champion} stays champion" if champion else "there is no champion yet"


def record_verdict(verdict: "Verdict", champion: "ModelVersion | None", challenger: "ModelVersion") -> None:
    """Write the gate's verdict to the ledger."""
    outcomes: dict[str, What] = {"passed": "promote", "waits": "wait", "failed": "refuse"}
    record(outcomes[verdict.outcome], champion, challenger, f"gate: {verdict.why}", verdict.figures)


@contextmanager
def promoting() -> Iterator[None]:
    """Change the champion alone: of two promotions at once, one wins.

    Raises:
        UserError: another process changes the champion at the moment.

    """
    path = LEDGER.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another command changes the champion at the moment: look at `convoy ledger`, and type this again",
                exit_code=1,
            ) from None
        yield


def record(
    what: What,
    champion: "ModelVersion | None",
    challenger: "ModelVersion",
    why: str,
    figures: Mapping[str, float],
) -> None:
    """Write a decision about a challenger to the ledger. A repeated decision of the gate is not written again."""
    entry = Entry(
        what=what,
        before=_release(champion) if champion else None,
        to=_release(challenger),
        why=why,
        figures=figures,
    )
    if what == "promote" or not _is_told(entry):
        tell_entry(ledger.append(LEDGER, entry))


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
