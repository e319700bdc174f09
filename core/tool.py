"""The tool's version, and whether to show progress."""

import sys
from importlib.metadata import PackageNotFoundError, version

IN_NO_KEY = "What is told, never what is computed."


def tool_version() -> str:
    """Return Convoy's version, or "not installed" if the code only lies in a folder, as in the worker's image."""
    try:
        return version("convoy")
    except PackageNotFoundError:
        return "not installed"


def shows_progress() -> bool:
    """Whether to draw progress bars: in a terminal, and in a notebook, whose output is no terminal."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
