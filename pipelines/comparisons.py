"""Comparison of two versions of the model on today's test images."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import UserError
from pipelines.config import Config
from pipelines.references import find_version
from pipelines.workspace import MODELS, PREPARED, RAW, ROOT, open_registry

if TYPE_CHECKING:
    from models.judging.comparison import ModelComparison
    from models.judging.measured import Measured
    from models.tracking.registry import ModelVersion
    from models.tracking.runs import RunLog

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class Compared:
    """Two measured models, and their differences."""

    champion: "Measured"
    challenger: "Measured"
    found: "ModelComparison"

    def page(self) -> str:
        """Render the page of the comparison."""
        from models.judging.comparison_page import comparison_page

        return comparison_page(self.found, self.champion, self.challenger, PREPARED)


def compare(config: Config, champion: "Measured", challenger: "Measured") -> Compared:
    """Compare two models measured on today's test images.

    Raises:
        UserError: the models share fewer than two classes.

    """
    from data.versioning import data_version
    from models.judging.comparison import compare_models

    limit, version = config.gate.max_regression, data_version(ROOT) or ""
    return Compared(champion, challenger, compare_models(champion, challenger, PREPARED, version, limit))


def hang_comparison(config: Config, champion: "Measured | None", challenger: "Measured", log: "RunLog") -> None:
    """Store the page and the figures of a comparison on the challenger's run, if the models can be compared."""
    if champion is None:
        return
    try:
        compared = compare(config, champion, challenger)
    except UserError as error:
        _log.info("gate: no page of a comparison: %s", error)
        return
    log.page(compared.page(), "comparison")
    log.record(compared.found.model_dump(mode="json"), "comparison")


def compare_references(config: Config, first: str | None, second: str | None) -> Compared:
    """Measure and compare the models of two references.

    Without references: the challenger against the champion, or, if there is no challenger, the champion against the
    previous version. With one reference: this model against the champion.

    Raises:
        UserError: a reference names nothing, both name the same version, or the models share fewer than two classes.

    """
    from models.judging.measured import measure

    champion, challenger = _choose(config, first, second)
    if champion.version == challenger.version:
        raise UserError(f"{champion} is compared with itself: name another version, such as `convoy compare 1 2`")
    registry = open_registry(config)
    measured = [measure(registry.download(one, MODELS), RAW, PREPARED) for one in (champion, challenger)]
    return compare(config, *measured)


def _choose(config: Config, first: str | None, second: str | None) -> "tuple[ModelVersion, ModelVersion]":
    from models.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS

    if first and second:
        return find_version(config, first), find_version(config, second)
    registry = open_registry(config)
    champion = find_version(config, CHAMPION)
    if first:
        return champion, find_version(config, first)
    if challenger := registry.by_alias(CHALLENGER):
        return champion, challenger
    if previous := registry.by_alias(PREVIOUS):
        return previous, champion
    raise UserError(f"{champion} is the only version that has an alias: name another, such as `convoy compare 1 2`")
