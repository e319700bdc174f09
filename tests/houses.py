"""The sources of our rooms, and changes to a copy of them (see the fixture `house`)."""

import re
from pathlib import Path

from core import code

ROOT = Path(__file__).parents[1]


def sources(*rooms: str) -> list[Path]:
    """The Python files of `rooms`. Walked by hand: data/raw and data/prepared may hold a million files."""
    files = []
    for room in rooms:
        folders = [ROOT / room]
        while folders:
            for path in folders.pop().iterdir():
                if path.is_dir() and path not in (ROOT / "data/raw", ROOT / "data/prepared"):
                    folders.append(path)
                elif path.suffix == ".py":
                    files.append(path)
    assert files
    return sorted(files)


def sources_for(predictor):
    """Name the sources in a Bento: what an endpoint and the predictor import, and the page."""
    from serving.packaging.bento import ENTRIES

    found = {path.relative_to(ROOT).as_posix() for path in code.closure(*ENTRIES, predictor).values()}
    return found | {path.relative_to(ROOT).as_posix() for path in (ROOT / "serving/endpoint/page").iterdir()}


def reword(path):
    """Change what has no meaning: comments, blank lines, the docstring of the module."""
    text = path.read_text()
    text = re.sub(r'\A"""', '"""In other words: ', text)
    path.write_text(f"# A comment.\n\n\n{text}\n\n# Another comment.\n")


def change(path, constant, value):
    """Give a constant of a module another value."""
    text, count = re.subn(
        rf"^{constant}\b(.*?) = .*$", rf"{constant}\1 = {value}", path.read_text(), flags=re.MULTILINE
    )
    assert count == 1
    path.write_text(text)
