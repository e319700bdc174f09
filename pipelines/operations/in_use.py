"""What somebody still refers to: the ledger, an alias of the registry, a live endpoint."""

from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from pipelines.workspace import LEDGER, ROOT
from serving.packaging.bento import Bento
from serving.rollout import chain, ledger
from serving.rollout.ledger import Release


@dataclass(frozen=True)
class References:
    """Runs and images that must stay."""

    named: frozenset[str]
    """runs that the ledger names, or whose models have an alias or are live"""
    in_use: frozenset[str]
    """those of them whose models have an alias or are live"""
    registered: frozenset[str]
    """runs that have registered a model"""
    images: frozenset[str]
    """tags of images that have been live or are"""


def find_references(aliased: frozenset[str], registered: frozenset[str]) -> References:
    """Collect what is referred to, given the runs that the registry knows.

    Raises:
        UserError: the ledger was altered or has a line that cannot be read, or no engine says what is live.

    """
    entries = [release for entry in _whole_ledger() for release in (entry.before, entry.to) if release]
    live = _live_releases()
    in_use = aliased | {release.run_id for release in live}
    return References(
        named=in_use | {release.run_id for release in entries},
        in_use=in_use,
        registered=registered,
        images=frozenset(release.image for release in (*entries, *live) if release.image),
    )


def _whole_ledger() -> list[ledger.Entry]:
    checked, entries = chain.verify(LEDGER), ledger.read(LEDGER)
    if checked.faults or len(entries) != checked.head.num_lines:
        why = "; ".join(checked.faults) or f"{LEDGER} has a line that is no entry"
        raise UserError(f"nothing is removed, because the ledger was altered: {why}", exit_code=1)
    return entries


def _live_releases() -> list[Release]:
    """Ask the engine what the gateway leads to, where something has been deployed from here."""
    if not any(entry.target for entry in ledger.read(LEDGER)):
        return []
    from serving.rollout.containers import Project
    from serving.rollout.deploy import find_live

    try:
        found = find_live(Project(ROOT))
    except UserError as error:
        raise UserError(f"nothing is removed, because nobody says what is live: {error}", exit_code=1) from None
    return [share.release for live in found.values() for share in live.shares if share.release]


def served_here(bento: Bento) -> bool:
    """Whether a process of this machine serves a Bento from its folder; on Linux only, elsewhere nothing tells."""
    folder = (bento.path / "src").resolve()
    for process in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if process.readlink() == folder:
                return True
        except OSError:  # it has ended, or is another user's
            continue
    return False
