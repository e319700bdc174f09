"""Rolling back: requests first, then what the registry calls champion and previous."""

import logging

from data.errors import UserError, one_line
from pipelines.config import Config
from pipelines.workspace import LEDGER, open_registry, open_site
from serving import deploy, ledger
from serving.ledger import Entry

_log = logging.getLogger("convoy")


def roll_back(config: Config, why: str) -> Entry:
    """Bring back what was live before; a registry that is away is no reason to let users wait.

    Not alone in the workspace: it must be possible while a model is trained there.
    """
    entry = deploy.roll_back(open_site(config), why or "asked for")
    try:
        _restore_aliases(config, entry)
    except UserError as error:
        _log.warning("registry: the aliases stay as they are: %s", one_line(error))
    return entry


def _restore_aliases(config: Config, entry: Entry) -> None:
    from models.registry import CHAMPION

    left, back = entry.before, entry.to
    assert back is not None
    registry = open_registry(config)
    champion = registry.by_alias(CHAMPION)
    if champion is None or left is None or (left.model_name, left.model_version) != (champion.name, champion.version):
        _log.info("registry: %s stays champion: it is not what was rolled back", champion or "nothing")
        return
    if back.model_version == left.model_version:
        return
    earlier = [release.model_version for release in ledger.history(ledger.read(LEDGER, entry.target))[:-1]]
    previous = next((version for version in reversed(earlier) if version != back.model_version), None)
    restored = registry.restore(back.model_version, previous)
    _log.info(
        "registry: %s is the champion again, %s the previous one", restored, f"v{previous}" if previous else "none"
    )
