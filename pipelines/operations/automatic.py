"""Whether a run that nobody has asked for is worth it, and how many there were today."""

import json
import logging
import time

from core.files import whole_file
from pipelines.config import Config
from pipelines.explain import explain
from pipelines.settings import OUTPUTS
from pipelines.workspace import LEDGER
from serving.rollout import ledger

RUNS_FILE = OUTPUTS / "automatic-runs.json"
"""When pipelines were started without a person, in seconds since 1970."""
DAY = 86_400

_log = logging.getLogger("convoy")


def reasons_to_run(config: Config) -> list[str]:
    """Say what has changed since the last run, as `convoy explain` does; nothing where a run would repeat itself.

    Raises:
        UserError: the images cannot be used.

    """
    steps = [step for step in explain(config) if step.answer != "skipped"]
    # A model that the gate has refused, or that waits for a person, is judged no other way today.
    if steps and steps[0].name == "gate" and _gate_has_decided():
        steps = []
    return [f"{step.name}: {step.reason}" for step in steps if step.answer == "runs"]


def _gate_has_decided() -> bool:
    judged = [entry for entry in ledger.read(LEDGER) if entry.target is None]
    return bool(judged) and judged[-1].what in ("refuse", "wait")


def count_run(max_runs: int) -> bool:
    """Note a run, unless there were `max_runs` of them within a day; for who holds the workspace."""
    now = time.time()
    try:
        times = [when for when in json.loads(RUNS_FILE.read_text(encoding="utf-8")) if now - DAY < when <= now]
    except (FileNotFoundError, ValueError):
        times = []
    if len(times) >= max_runs:
        _log.warning("automation: %d runs within a day are enough: this one is left for later", len(times))
        return False
    RUNS_FILE.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(RUNS_FILE) as temporary:
        temporary.write_text(json.dumps([*times, now]), encoding="utf-8")
    return True
