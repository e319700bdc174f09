"""Projects. A project is a folder with parameters, data and runs. The tool is installed elsewhere."""

import subprocess
from pathlib import Path

from core.errors import UserError
from core.files import whole_file
from data.config import SOURCES
from data.sources.registry import open_source
from pipelines.config import PARAMS, Config, render

TEMPLATE = Path(__file__).parent / "template"
"""Files of a new project. Some are links to files of the clone. A wheel holds copies."""

FILES = {
    "dvc.yaml": "dvc.yaml",
    ".dvc/config": "dvc-config",
    ".dvc/.gitignore": "dvc-gitignore",
    ".dvcignore": "dvcignore",
}
"""Name in the template, by name in the project."""


def init_project(folder: Path, config: Config) -> None:
    """Create a project in `folder`, with the parameters of `config` that differ from the defaults.

    Raises:
        UserError: the folder holds a project already, its images cannot be used, or git is not installed.

    """
    there = [name for name in (PARAMS, "dvc.yaml", ".dvc", ".dvcignore") if (folder / name).exists()]
    if there:
        raise UserError(f"{folder} has {' and '.join(there)} already: name another folder, or go on in this one")
    if config.data.path and config.data.source in SOURCES.ours:
        open_source(config.data).fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        init_git(folder)
        for name, template in FILES.items():
            _write(folder / name, (TEMPLATE / template).read_text(encoding="utf-8"))
        _ignore(folder / ".gitignore")
        _write(folder / PARAMS, render(config, only_changed=True))
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be made: {error.strerror}") from None


def init_git(folder: Path) -> None:
    """Create a git repository, unless the folder is in a repository that does not ignore the folder."""
    try:
        inside = subprocess.run(["git", "rev-parse", "--is-inside-work-tree"], cwd=folder, capture_output=True)
        if inside.returncode == 0 and subprocess.run(["git", "check-ignore", "-q", "."], cwd=folder).returncode:
            return
        made = subprocess.run(["git", "init", "--quiet"], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("git is not installed, which versions of the data refer to: install it") from None
    if made.returncode:
        raise UserError(f"git init failed in {folder}: {' '.join(made.stderr.split())}", exit_code=1)


def _ignore(path: Path) -> None:
    """Add the missing lines to a .gitignore. The user's lines stay."""
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    wanted = (TEMPLATE / "gitignore").read_text(encoding="utf-8").splitlines()
    _write(path, "".join(f"{line}\n" for line in [*before, *(line for line in wanted if line not in before)]))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
