"""What our code imports, read from its text."""

import ast
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imported_by(name: str, rooms: Sequence[str]) -> set[str]:
    """The file, and all of some rooms that it imports, directly or not, at its head or in a function."""
    found, waiting = set[str](), [name]
    while waiting:
        found.add(name := waiting.pop())
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = [(*node.module.split("."), alias.name) for alias in node.names]
                waiting += {f"{room}/{name}.py" for room, name, *_ in parts if room in rooms} - found
    return found
