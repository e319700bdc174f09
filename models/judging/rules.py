"""Rules that `gate.rules` names: each may refuse a challenger, and says why."""

from collections.abc import Sequence

from core.extensions import short_name
from models.config import RULES
from models.judging.evaluate import Predictions


def apply_rules(challenger: Predictions, champion: Predictions | None, rules: Sequence[str]) -> dict[str, str]:
    """Give why each rule refuses, by its name; "" where it does not.

    Raises:
        UserError: a rule is not there, raises, or gives something else than a text or None.

    """
    return {short_name(name): _apply(name, challenger, champion) for name in rules}


def _apply(name: str, challenger: Predictions, champion: Predictions | None) -> str:
    rule = RULES.load_function(name, "challenger", "champion")
    with RULES.explained(name):
        refusal = rule(challenger, champion)
    RULES.require(name, refusal, str, type(None))
    return " ".join((refusal or "").split())
