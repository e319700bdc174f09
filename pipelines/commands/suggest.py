"""`convoy suggest`: suggests settings, as commands to type."""

import json
import shlex
from collections.abc import Sequence

from core.machine import num_cores
from data.manifest import read_data_manifest
from models.training.suggestions import Suggestion, suggest, typical_side
from pipelines.workspace import PREPARED, RAW

GOALS = {"first": "a first result", "good": "a good one", "best": "the best"}


def print_suggestions(overrides: Sequence[str], *, as_json: bool) -> None:
    """Measure, and print the images, the machine and the suggested commands, which include the user's overrides.

    Raises:
        UserError: no images have been prepared.

    """
    manifest = read_data_manifest(PREPARED)
    side = typical_side(RAW)
    found = suggest(manifest, side)
    if as_json:
        content = [{"goal": one.goal, "settings": one.settings, "seconds": round(one.seconds)} for one in found]
        print(json.dumps(content, indent=1))
        return
    classes = len(manifest.classes)
    print(f"{manifest.num_images:,} images of {side} px in {classes} classes; this machine has {num_cores()} cores")
    for one in found:
        print(f"\n{GOALS[one.goal]}, in about {_duration(one.seconds)} of training:\n  {_command(one, overrides)}")


def _command(suggestion: Suggestion, overrides: Sequence[str]) -> str:
    typed = [override for override in overrides if override.partition("=")[0] not in suggestion.settings]
    options = [*typed, *(f"{name}={value}" for name, value in suggestion.settings.items())]
    return " ".join(["convoy run", *(f"--set {shlex.quote(option)}" for option in options)])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
