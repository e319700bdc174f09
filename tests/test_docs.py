import ast
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml
from imports import ROOT
from typer.core import TyperGroup
from typer.exceptions import TyperException

from core.errors import UserError
from docs.hooks import PAGES as SITE_PAGES
from docs.hooks import parameter_tables
from pipelines.commands.main import app
from pipelines.config import describe, load_config

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.glob("*.md")),
    ROOT / "benchmarks/README.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
COMMAND = re.compile(r"(?:^|\s)(?:\S*/)?convoy (?=[a-z-])")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What GitHub and MkDocs call the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    broken = []
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_each_page_is_linked_from_the_readme():
    linked = {link.partition("#")[0] for link in LINK.findall(prose(ROOT / "README.md"))}
    assert {page.relative_to(ROOT).as_posix() for page in PAGES[1:]} - linked == set()


def shown() -> Iterator[tuple[Path, str, bool]]:
    """Each `convoy` command of the pages, and whether it stands whole, in a block, or is named in a sentence."""
    for page in PAGES:
        text = page.read_text()
        for language, block in FENCE.findall(text):
            if language == "sh":
                for line in block.replace("\\\n", " ").splitlines():
                    if match := COMMAND.search(line.partition(" #")[0]):
                        yield page, line[match.end() :], True
        for code in re.findall(r"`([^`\n]+)`", prose(page)):
            if match := COMMAND.match(code):
                yield page, code[match.end() :], False


def parse(arguments: list[str], *, whole: bool) -> list[str]:
    """Let the command line parse `arguments` and run nothing; gives the values of `--set`.

    Raises:
        TyperException: there is no such command or option, or an argument is missing.

    """
    command, context, name = typer.main.get_command(app), None, "convoy"
    while isinstance(command, TyperGroup):
        context = typer.Context(command, info_name=name, parent=context)
        _, arguments, _ = command.make_parser(context).parse_args(arguments)
        if not arguments:  # the options of the group alone, such as --help
            return []
        name, command, arguments = command.resolve_command(context, arguments)
    try:
        context = command.make_context(name, arguments, parent=context)
    except typer.Exit:  # of --help
        return []
    except TyperException as error:
        # A sentence may name a command without its arguments.
        if whole or type(error).__name__ != "MissingParameter":
            raise
        return []
    return context.params.get("overrides") or []


def test_commands_that_the_pages_show_parse(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("")
    faults, num_commands = [], 0
    for page, command, whole in shown():
        num_commands += 1
        try:
            load_config(params, parse(shlex.split(command, comments=True), whole=whole))
        except (TyperException, UserError) as error:
            faults.append(f"{page.relative_to(ROOT)}: convoy {command}: {error}")
    assert faults == []
    assert num_commands > 40


@pytest.mark.parametrize("command", ["data rport", "data report --htm", "promote 3"])
def test_a_command_that_is_wrong_is_found(command):
    with pytest.raises(TyperException):
        parse(command.split(), whole=True)


def templates() -> str:
    """All text of the code, with `…` for each value that is put into it."""
    found = []
    for room in ("core", "convoy", "data", "models", "serving", "pipelines"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_messages_of_the_troubleshooting_page_are_given_by_the_code():
    page = (DOCS / "troubleshooting.md").read_text().partition("## Answers of an endpoint")[0]
    messages = re.findall(r"^\| `{1,2}(.+?)`{1,2} \|", page, re.MULTILINE)
    text = templates()
    assert [message for message in messages if message not in text] == [], "docs/troubleshooting.md quotes these"
    assert len(messages) > 30
    assert not [one for one, other in pairwise(sorted(messages)) if one == other]


def test_the_site_lists_each_page():
    def files(entries):
        for entry in entries:
            for value in entry.values():
                yield from files(value) if isinstance(value, list) else [value]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = {SITE_PAGES.get(page.relative_to(ROOT).as_posix(), page.name) for page in PAGES}
    assert sorted(files(nav)) == sorted(pages)


def test_the_configuration_page_has_each_parameter():
    tables = parameter_tables()
    assert [path for path, _, meaning in describe() if f"| `{path}` |" not in tables or meaning not in tables] == []
    assert "| `data.size` | `32` | integer ≥ 8 and ≤ 4,096 |" in tables
    assert "| `rollout.canary_max_failures` |" in tables
    assert (DOCS / "configuration.md").read_text().count("parameters -->") == 2
