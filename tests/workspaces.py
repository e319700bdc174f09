"""Workspaces in which DVC can run: a git repository with this room's code."""

import shutil
import subprocess
from pathlib import Path

from images import write

ROOT = Path(__file__).parents[1]


def make_workspace(folder):
    """What a clone holds of this room."""
    for path in [*ROOT.glob("data/*.py"), *(ROOT / name for name in ("dvc.yaml", ".dvcignore", ".gitignore"))]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    write(folder, {name: (ROOT / name).read_bytes() for name in (".dvc/config", ".dvc/.gitignore")})
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder
