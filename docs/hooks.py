"""MkDocs: what the site of `make docs` has besides the pages of docs/.

README.md and other pages of the repository become pages of the site, and configuration.md gets its tables.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import Config, describe

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Pages that do not stand in docs/, and their names on the site."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^()\s#]+)")
TABLES = re.compile(r"<!-- parameters -->.*<!-- end parameters -->", re.DOTALL)


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the other pages, and the files that pages link to, such as pictures."""
    from mkdocs.structure.files import File

    for path, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    for path in {linked for page in _pages() for linked in _linked_files(page)}:
        files.append(File.generated(config, path.name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:  # noqa: ARG001
    """Let links lead to the pages of the site, and write the tables of all parameters."""
    source = Path(page.file.abs_src_path or "")
    markdown = LINK.sub(lambda link: _name_on_site(source, link[0]), markdown)
    return TABLES.sub(lambda _: parameter_tables(), markdown)


def parameter_tables() -> str:
    """Write a table for each section of the configuration, in Markdown."""
    schemas = Config.model_json_schema()["$defs"]
    lines: list[str] = []
    section = ""
    for path, default, meaning in describe():
        head, name = path.split(".")
        field = Config.model_fields[head]
        if head != section:
            section = head
            lines += ["", f"### {head}", "", f"{field.description}", ""]
            lines += ["| parameter | default | values | meaning |", "|---|---|---|---|"]
        schema = schemas[field.annotation.__name__]["properties"][name]  # type: ignore[union-attr]
        cells = (f"`{path}`", f"`{default}`", _values(schema), meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _values(schema: dict[str, Any]) -> str:
    """Say which values a parameter may have."""
    if "anyOf" in schema:
        return ", ".join(dict.fromkeys(_values(one) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{str(choice).lower() if isinstance(choice, bool) else choice}`" for choice in choices)
    kind = {
        "boolean": "`true`, `false`",
        "string": "text",
        "null": "`null`",
        "array": "a list",
        "object": "names and numbers",
    }
    words = kind.get(schema["type"], schema["type"])
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = " and ".join(f"{sign} {schema[name]:,}" for name, sign in bounds.items() if name in schema)
    return f"{words} {limits}".strip()


def _pages() -> Iterator[Path]:
    yield from (ROOT / "docs").glob("*.md")
    yield from (ROOT / path for path in PAGES)


def _linked_files(page: Path) -> Iterator[Path]:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / link).resolve()
        if path.is_file() and path.suffix != ".md":
            yield path


def _name_on_site(source: Path, link: str) -> str:
    path = (source.parent / link).resolve()
    if not path.is_relative_to(ROOT):
        return link
    return PAGES.get(path.relative_to(ROOT).as_posix(), path.name if path.is_file() else link)
