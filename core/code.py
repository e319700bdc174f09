"""Digest of the code on which a result depends, read from the source files without importing them.

A module counts by its syntax tree without docstrings. Comments and formatting are not in the tree. A module depends on
the modules of the house and of the project that it imports, directly or not, so no list of files is kept by hand.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
"""Folder of the rooms, wherever the tool is installed."""
ROOMS = ("convoy", "pipelines", "serving", "models", "data", "core")
"""Other packages count by their version, not by their code."""
PROJECT = "convoy_project"
"""Package of the modules in a user's project: `convoy_project.my_net` is `my_net.py`. Commands run in the project's
folder."""

MARK = "IN_NO_KEY"
"""A module that assigns a reason to this name changes no result. `digest` skips the module, but not its imports."""
IN_NO_KEY = "Computes keys. A change that matters changes the digests themselves."


@dataclass(frozen=True)
class _Source:
    """Parsed source file."""

    meaning: str
    """digest of the syntax tree"""
    imports: frozenset[str]
    """modules, and names that may be modules, at any depth of the file; without imports for type checkers only"""
    is_marked: bool


def digest(*modules: str, without: Sequence[str] = (), packages: Sequence[str] = ()) -> str:
    """Hash the code of `modules` and of all modules that they import, without marked modules.

    The same sources give the same digest on every machine and in every supported version of Python.

    Args:
        modules: dotted names.
        without: modules whose code counts elsewhere, such as in the data version. Their imports are left out too.
        packages: names and versions of installed packages that count too.

    Raises:
        UserError: a module of the project is missing, or is no Python.

    """
    left_out = closure(*without)
    sources = {name: _read(name, path) for name, path in closure(*modules).items() if name not in left_out}
    meanings = [(name, source.meaning) for name, source in sources.items() if not source.is_marked]
    return hashlib.sha256(json.dumps([*meanings, *packages]).encode()).hexdigest()[:16]


def closure(*modules: str) -> dict[str, Path]:
    """Return the files of `modules` and of all modules of the house that they import, directly or not, by module name.

    Imports in functions count. Imports under `if TYPE_CHECKING` do not count. A module's packages are included.

    Raises:
        ModuleNotFoundError: one of `modules` is not in the house.
        UserError: one of `modules` is missing in the project, or is no Python.

    """
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if path := _file(name):
            found[name] = path
            waiting += [*_read(name, path).imports, *_packages(name)]
        elif name in modules and _is_of_project(name):
            file = f"{name.partition('.')[2].replace('.', '/')}.py"
            raise UserError(f"{Path.cwd()} has no {file}, which a parameter names: put the file there")
        elif name in modules:
            raise ModuleNotFoundError(f"there is no module {name} in {ROOT}", name=name)
    return dict(sorted(found.items()))


def package_data(*modules: str) -> list[Path]:
    """List the data files of modules. They are in a folder beside the module that has the module's name."""
    folders = [path.with_suffix("") for path in closure(*modules).values() if path.with_suffix("").is_dir()]
    files = [path for folder in folders for path in folder.rglob("*")]
    return sorted(path for path in files if path.is_file() and path.suffix not in (".py", ".pyc"))


def meaning(path: Path) -> str:
    """Digest of a source file that comments, docstrings and formatting do not change."""
    return _read("", path).meaning


def _is_of_project(module: str) -> bool:
    return module.startswith(f"{PROJECT}.")


def _file(module: str) -> Path | None:
    room, *parts = module.split(".")
    if _is_of_project(module):
        return find_module(Path.cwd(), parts)
    return find_module(ROOT, [room, *parts]) if room in ROOMS else None


def find_module(folder: Path, parts: Sequence[str]) -> Path | None:
    """Find the file of module `parts` below `folder`."""
    base = folder.joinpath(*parts)
    places = (base / "__init__.py", base.with_name(f"{base.name}.py"))
    return next((place for place in places if place.is_file()), None)


def _packages(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _read(module: str, path: Path) -> _Source:
    status = path.stat()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return _read_once(path, package, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1024)
def _read_once(path: Path, package: str, _modified: int, _size: int) -> _Source:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}:{getattr(error, 'lineno', None) or 1}: {getattr(error, 'msg', error)}") from None
    words: list[str] = []
    _flatten(tree, words)
    text = "".join(words)
    marks = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    is_marked = any(isinstance(target, ast.Name) and target.id == MARK for target in marks)
    return _Source(hashlib.sha256(text.encode()).hexdigest(), frozenset(_imports(tree, package)), is_marked)


def _flatten(value: object, words: list[str]) -> None:
    """Write a syntax tree as text that is the same in all versions of Python. Empty fields are left out."""
    if isinstance(value, ast.AST):
        words.append(f"{type(value).__name__}(")
        for name in value._fields:
            field = getattr(value, name, None)
            # `ctx` (load or store) follows from the place in the tree.
            if field is not None and field != [] and name != "ctx":
                words.append(f"{name}=")
                _flatten(field, words)
        words.append(")")
    elif isinstance(value, list):
        words.append("[")
        for item in value:
            if not _is_docstring(item):
                _flatten(item, words)
        words.append("]")
    else:
        words.append(ascii(value))


def _is_docstring(node: object) -> bool:
    """Whether a statement is only a string: a docstring, also of a field or a constant."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from _names(child, package)
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            yield from _imports(ast.Module(child.orelse, []), package)
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _imports(child, package)


def _names(node: ast.ImportFrom, package: str) -> Iterator[str]:
    """`from a import b` imports the module `a`, and `a.b` if that is a module."""
    above = package.split(".")
    above = above[: len(above) + 1 - node.level] if node.level else []
    module = ".".join([*above, *([node.module] if node.module else [])])
    yield module
    yield from (f"{module}.{alias.name}" for alias in node.names)


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name | ast.Attribute) and ast.unparse(test).endswith("TYPE_CHECKING")
