"""Extensions by users, found by name: in a file of their project, or in an installed package.

`my_net:build` is `build` in the file `my_net.py` of the project. A name without a colon is one of ours, or an entry
point of an installed package. The files of a project are modules of a private package. Therefore they never hide our
modules, and import each other with a dot: `from .my_layers import Block`.
"""

import hashlib
import importlib
import importlib.util
import inspect
import re
import symtable
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from core import code
from core.errors import UserError, causes, one_line

IN_NO_KEY = "Finds code, which counts by itself."

_REFERENCE = re.compile(r"((?:[^\W\d]\w*\.)*[^\W\d]\w*):([^\W\d]\w*)")


@dataclass(frozen=True)
class ExtensionPoint:
    """Parameter that names code: our names, and the places where users add theirs."""

    parameter: str
    """path in params.yaml"""
    group: str
    """group of the entry points in installed packages"""
    ours: Mapping[str, str] = field(default_factory=dict)
    """module:attribute of each of our names"""

    def has(self, name: str) -> bool:
        """Whether the name is one of ours, an entry point, or has the form `module:attribute` of a project's file."""
        return name in self.ours or is_of_project(name) or self._entry_point(name) is not None

    def accept(self, name: str) -> str:
        """Validate a value of the parameter, for pydantic.

        Raises:
            ValueError: nothing has this name.

        """
        if self.has(name):
            return name
        known = f"there are {', '.join(self.ours)}; " if self.ours else ""
        raise ValueError(f"nothing has this name; {known}yours is my_file:name")

    def check(self, name: str, project: Path) -> None:
        """Check that a file of the project defines `name`, without loading the file.

        Raises:
            UserError: the file is missing, is no Python, or does not define the name.

        """
        if not is_of_project(name):
            return
        module, attribute = _split(name)
        file = code.find_module(project, module.split("."))
        if file is None:
            wanted = f"{module.replace('.', '/')}.py"
            raise UserError(f"{self._said(name)}, and {project.resolve()} has no {wanted}: put the file there")
        with self.explained(name):
            text = file.read_text(encoding="utf-8")
            symbols = symtable.symtable(text, str(file), "exec").get_symbols()
        defined = [one.get_name() for one in symbols if one.is_assigned() or one.is_imported()]
        if attribute not in defined and "import *" not in text:
            shown = [one for one in defined if not one.startswith("_")]
            has = f"; it defines {', '.join(shown[:10])}" if shown else ""
            raise UserError(f"{self._said(name)}, and {file.name} defines no {attribute}{has}")

    def modules(self, name: str) -> list[str]:
        """Return the module of `name`, for keys; none for an entry point, which counts by `packages`."""
        reference = self.ours.get(name, name)
        if ":" not in reference:
            return []
        module = reference.partition(":")[0]
        return [module if name in self.ours else f"{code.PROJECT}.{module}"]

    def packages(self, name: str) -> list[str]:
        """Return name and version of the installed package with the entry point `name`, for keys."""
        if name in self.ours or is_of_project(name) or not (found := self._entry_point(name)):
            return []
        return [f"{found.dist.name}=={found.dist.version}" if found.dist else found.value]

    def state(self, names: Sequence[str]) -> str:
        """Digest of the code of all `names`; "" if there are none.

        Raises:
            UserError: a file of the project is missing, or is no Python.

        """
        modules = [module for name in names for module in self.modules(name)]
        packages = [package for name in names for package in self.packages(name)]
        return code.digest(*modules, packages=[*names, *packages]) if names else ""

    def load(self, name: str) -> Any:
        """Return the object with this name.

        Raises:
            UserError: the object is missing, or its module raises. The message names the line.

        """
        if name in self.ours:
            return resolve_name(self.ours[name])
        if is_of_project(name):
            self.check(name, Path())
            module, attribute = _split(name)
            with self.explained(name):
                return getattr(_import_of_project(module), attribute)
        found = self._entry_point(name)
        if found is None:
            raise UserError(f"{self._said(name)}, which no installed package has as an entry point of {self.group}")
        with self.explained(name):
            return found.load()

    def load_function(self, name: str, *arguments: str) -> Callable[..., Any]:
        """Load a function or a class that can be called with `arguments`.

        Raises:
            UserError: as `load`; or the function cannot be called with `arguments`.

        """
        found = self.load(name)
        call = f"{name.rpartition(':')[2]}({', '.join(arguments)})"
        if not callable(found):
            raise UserError(f"{self._said(name)}, which is no function but {found!r:.80}: expected {call}")
        try:
            inspect.signature(found).bind(*arguments)
        except TypeError as error:
            raise UserError(f"{self._said(name)}, which cannot be called as {call}: {error}") from None
        except ValueError:
            pass  # some C functions have no signature
        return found  # type: ignore[no-any-return]

    def require(self, name: str, found: object, *kinds: type) -> None:
        """Check the type of `found`, which the code of `name` returned.

        Raises:
            UserError: `found` has another type.

        """
        if not isinstance(found, kinds):
            expected = " or ".join(_shown(kind) for kind in kinds)
            raise UserError(f"{self._said(name)}, which gave {_article(_shown(type(found)))}: expected {expected}")

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Turn an error in the code of `name` into a UserError that names the line of this code.

        Raises:
            UserError: the block raised an error.

        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            package = code.PROJECT if is_of_project(name) else self._package(name)
            place, what = _place(error, package), f"{type(error).__name__}: {one_line(error)}"
            hint = _hint(error) if is_of_project(name) else ""
            raise UserError(f"{f'{place}: ' if place else ''}{what} ({self._said(name)}){hint}", exit_code=1) from error

    def _said(self, name: str) -> str:
        return f"{self.parameter} is {name}"

    def _entry_point(self, name: str) -> EntryPoint | None:
        return next(iter(entry_points(group=self.group, name=name)), None)

    def _package(self, name: str) -> str:
        found = self._entry_point(name)
        return found.module.partition(".")[0] if found else ""


def is_of_project(name: str) -> bool:
    """Whether a name has the form `module:attribute`, and so belongs to a file of the project."""
    return _REFERENCE.fullmatch(name) is not None


def short_name(name: str) -> str:
    """Return the last part of a name: `f1` for `my_metrics:f1`."""
    return name.rpartition(":")[2]


def _split(name: str) -> tuple[str, str]:
    module, _, attribute = name.partition(":")
    return module, attribute


def _shown(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _place(error: BaseException, package: str) -> str:
    """Return file and line of the innermost frame of an error in a package's code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    place, step = "", error.__traceback__
    while step:
        frame = step.tb_frame
        if str(frame.f_globals.get("__name__")).partition(".")[0].startswith(package):
            place = f"{Path(frame.f_code.co_filename).name}:{step.tb_lineno}"
        step = step.tb_next
    return place


def _hint(error: Exception) -> str:
    """Explain how a file of the project imports another one, if an import failed."""
    for cause in causes(error):
        name = cause.name if isinstance(cause, ModuleNotFoundError) and cause.name else ""
        if name and code.find_module(Path(), name.split(".")):
            return f": a file of the project imports another one with a dot, `from .{name} import ...`"
    return ""


class _Loader(SourceFileLoader):
    """Loader that compiles a file at every load, and writes no bytecode into the project.

    Bytecode compares modification times in seconds, so it misses a second change within one second.
    """

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError(f"{path} has no bytecode")


class _Finder:
    """Finder of modules in the folder of their package."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(f"{code.PROJECT}_") or not path:
            return None
        folder, last = Path(path[0]), name.rpartition(".")[2]
        if file := code.find_module(folder, [last]):
            inner = [str(file.parent)] if file.name == "__init__.py" else None
            loader = _Loader(name, str(file))
            return importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=inner)
        if not (folder / last).is_dir():
            return None
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder / last)]
        return spec


def _import_of_project(module: str) -> ModuleType:
    """Import a module of the project in the current folder, once per state of its code.

    A notebook may edit the file, and may work in several projects.
    """
    folder = Path.cwd()
    state = hashlib.sha256(f"{folder} {code.digest(f'{code.PROJECT}.{module}')}".encode()).hexdigest()[:12]
    package = f"{code.PROJECT}_{state}"
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    if package not in sys.modules:
        parent = ModuleType(package)
        parent.__path__ = [str(folder)]
        sys.modules[package] = parent
    return importlib.import_module(f"{package}.{module}")
