"""The tool itself: its version, and whether somebody watches its progress."""

import sys
from importlib.metadata import PackageNotFoundError, version

IN_NO_KEY = "What is told, never what is computed."


def tool_version() -> str:
    """Give Convoy's version, or "not installed" where its code lies in a folder, as in the worker's image."""
    try:
        return version("convoy")
    except PackageNotFoundError:
        return "not installed"


def shows_progress() -> bool:
    """Whether a progress bar is drawn: in a terminal, and in a notebook, whose output is no terminal."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
