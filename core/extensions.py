"""What users add to the tool, found by its name: in a file of their project, or in a package that they installed.

`my_net:build` is `build` of the file `my_net.py` in the folder of the project. A name without a colon is one of ours,
or an entry point of an installed package. The files of a project are loaded as modules of a private package: none hides
a module of ours, whatever its name, and one imports another with a dot, `from .my_layers import Block`.
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
    """A kind of thing that a parameter names: those of ours, and where users add theirs."""

    parameter: str
    """path in params.yaml"""
    group: str
    """of the entry points of installed packages"""
    ours: Mapping[str, str] = field(default_factory=dict)
    """names, and where in the house each is, as module:attribute"""

    def has(self, name: str) -> bool:
        """Whether the name is one of ours, an entry point, or well-formed as one of a file of the project."""
        return name in self.ours or is_of_project(name) or self._entry_point(name) is not None

    def accept(self, name: str) -> str:
        """Validate a value of the parameter, for pydantic.

        Raises:
            ValueError: there is nothing of the name.

        """
        if self.has(name):
            return name
        known = f"there are {', '.join(self.ours)}; " if self.ours else ""
        raise ValueError(f"nothing has this name; {known}yours is my_file:name")

    def check(self, name: str, project: Path) -> None:
        """Look whether a file of the project defines what `name` stands for, without loading it.

        Raises:
            UserError: there is no such file, it is no Python, or the name is not in it.

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
        """Name the module behind `name`, for keys; none for entry points, which count by `packages`."""
        reference = self.ours.get(name, name)
        if ":" not in reference:
            return []
        module = reference.partition(":")[0]
        return [module if name in self.ours else f"{code.PROJECT}.{module}"]

    def packages(self, name: str) -> list[str]:
        """Give name and version of the installed package that has the entry point `name`, for keys."""
        if name in self.ours or is_of_project(name) or not (found := self._entry_point(name)):
            return []
        return [f"{found.dist.name}=={found.dist.version}" if found.dist else found.value]

    def state(self, names: Sequence[str]) -> str:
        """Name the code behind all of `names`; "" for none.

        Raises:
            UserError: a file of the project is not there, or is no Python.

        """
        modules = [module for name in names for module in self.modules(name)]
        packages = [package for name in names for package in self.packages(name)]
        return code.digest(*modules, packages=[*names, *packages]) if names else ""

    def load(self, name: str) -> Any:
        """Give what `name` stands for.

        Raises:
            UserError: it is not there, or its module raises; the message names the line.

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
        """Load what is called with so many arguments: a function, or a class.

        Raises:
            UserError: as `load`; or it cannot be called so.

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
            pass  # some functions in C do not tell what they take
        return found  # type: ignore[no-any-return]

    def require(self, name: str, found: object, *kinds: type) -> None:
        """Compare what the code behind `name` has given with what is expected of it.

        Raises:
            UserError: it is of another type.

        """
        if not isinstance(found, kinds):
            expected = " or ".join(_shown(kind) for kind in kinds)
            raise UserError(f"{self._said(name)}, which gave {_article(_shown(type(found)))}: expected {expected}")

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Turn what the code behind `name` raises into one line that names the place in that code.

        Raises:
            UserError: anything was raised.

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
    """Whether a name stands for something in a file of the project: `module:attribute`."""
    return _REFERENCE.fullmatch(name) is not None


def short_name(name: str) -> str:
    """Give what a name is called where only letters fit: `f1` for `my_metrics:f1`."""
    return name.rpartition(":")[2]


def _split(name: str) -> tuple[str, str]:
    module, _, attribute = name.partition(":")
    return module, attribute


def _shown(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _place(error: BaseException, package: str) -> str:
    """Name the innermost line of a package's code that an error came from."""
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
    """Say how a file of the project imports another one."""
    for cause in causes(error):
        name = cause.name if isinstance(cause, ModuleNotFoundError) and cause.name else ""
        if name and code.find_module(Path(), name.split(".")):
            return f": a file of the project imports another one with a dot, `from .{name} import ...`"
    return ""


class _Loader(SourceFileLoader):
    """Compiles a file whenever it is loaded, and writes no bytecode into the project.

    Bytecode is told to be stale by the second: a file that is changed twice within one would not be read again.
    """

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError(f"{path} has no bytecode")


class _Finder:
    """Finds modules in the folder that their package names."""

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
    """Import a module of the project in the current folder, once for each state of its code.

    A notebook may edit the file, and work in several projects.
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
