"""What our code imports, read from its text."""

import ast
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules_in(path: Path) -> set[str]:
    """What a file imports from outside its own folder, at its head or in a function, as `package.module.name`."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_by(name: str, rooms: Sequence[str]) -> set[str]:
    """The file, and all of some rooms that it imports, directly or not."""
    found, waiting = set[str](), [name]
    while waiting:
        found.add(file := waiting.pop())
        parts = [module.split(".") for module in modules_in(ROOT / file)]
        waiting += {f"{room}/{part}.py" for room, part, *_ in (pair for pair in parts if pair[0] in rooms)} - found
    return found
