"""Workspaces in which DVC can run: a git repository with the stages."""

import subprocess
from pathlib import Path

from images import write

ROOT = Path(__file__).parents[1]


def make_workspace(folder):
    """What a clone holds besides code, which runs from where it is installed."""
    names = ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
    write(folder, {name: (ROOT / name).read_bytes() for name in names})
    (folder / "data").mkdir(exist_ok=True)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder
