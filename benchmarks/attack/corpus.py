"""The images that attackers upload: bombs of our own making, and broken ones of any origin."""

import os
from pathlib import Path

HOSTILE = Path(os.environ.get("CONVOY_HOSTILE_IMAGES", Path(__file__).parents[3] / "shared/data/robust"))
"""A folder of broken images."""


def bombs() -> dict[str, bytes]:
    """Make all bombs, by name; this takes seconds."""
    # Here and not above: attacks that upload nothing need no Pillow.
    from benchmarks.attack import images

    return {name: bomb() for name, bomb in images.bombs().items()}


def hostile_files() -> list[Path]:
    """Name the files of the folder `HOSTILE`; none where there is no such folder."""
    return sorted(path for path in HOSTILE.rglob("*") if path.is_file())
