"""What our code imports, read from its text."""

import ast
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
