"""Images that attackers upload: generated bombs, and broken images of any origin."""

import os
from pathlib import Path

HOSTILE = Path(os.environ.get("CONVOY_HOSTILE_IMAGES", Path(__file__).parents[3] / "shared/data/robust"))
"""Folder of broken images."""


def bombs() -> dict[str, bytes]:
    """Make all bombs, by name, which takes seconds."""
    # Imported here, because attacks without uploads need no Pillow.
    from benchmarks.attack import images

    return {name: bomb() for name, bomb in images.bombs().items()}


def hostile_files() -> list[Path]:
    """List the files in the folder `HOSTILE`, none if the folder does not exist."""
    return sorted(path for path in HOSTILE.rglob("*") if path.is_file())
