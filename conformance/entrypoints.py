"""Nothing public is forgotten: finds the public callables of a tree, and sees them called."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import pytest

from conformance.rewire import FunctionWatch, functions_in
from conformance.tree import PACKAGE, Absent, ImportFailed, Tree, attribute, load

FACTS = ("S1", "S2", "S3", "S4", "S5", "S6", "S7", "A1", "A2", "A3")
"""Sites and acceptance lines of the note "MPS Support (macOS)" of ACE-Step 1.5."""

NAMED_PRIVATE = ("handler:AceStepHandler._is_on_target_device",)
"""Entry points that the note names although their names begin with an underscore."""

_declared: dict[str, None] = {}


def covers(*rows: str) -> pytest.MarkDecorator:
    """Declare what a case covers.

    Args:
        rows: ids of `FACTS`, and entry points as `module:name` or `module:Class.method` below
            `acestep`. A `*` in an entry point stands for every public callable that matches.
            Each must be called while the case runs, or the case fails.
    """
    _declared.update(dict.fromkeys(row for row in rows if row not in FACTS))
    return pytest.mark.covers(*rows)


@dataclass
class Surface:
    """The public callables of a tree.

    Attributes:
        callables: id to the Python functions behind it (of a property: its accessors).
        unimportable: full module name to why it could not be imported.
    """

    callables: dict[str, tuple[FunctionType, ...]]
    unimportable: dict[str, str]


def applying(exempt: Mapping[str, Sequence[str]], unimportable: Iterable[str]) -> list[str]:
    """The exemptions that are needed here.

    What a missing extra keeps from being imported is not seen, and so not excused in vain.

    Args:
        exempt: reason to ids of callables.
        unimportable: full names of modules that cannot be imported here.
    """
    unseen = tuple(f"{name.removeprefix(f'{PACKAGE}.')}:" for name in unimportable)
    return [n for names in exempt.values() for n in names if not n.startswith(unseen)]


def survey(tree: Tree) -> Surface:
    """Import every public module of a tree and list what is public in them.

    Public is a function, or a method of a class, whose name and whose module's name do not
    begin with an underscore, and whose body stands in the tree: what `dataclass` writes, what
    is inherited from a library and what a protocol only describes is not, nor are scripts that
    measure, in modules whose names end in `benchmark`.
    """
    surface = Surface({}, {})
    for name in tree.module_names():
        below = name.removeprefix(PACKAGE).removeprefix(".")
        if not below or below.endswith("benchmark"):
            continue
        try:
            module = load(tree, below)
        except ImportFailed as error:
            surface.unimportable[name] = str(error)
            continue
        surface.callables.update(_public_of(module, below))
    for row in NAMED_PRIVATE:
        try:
            surface.callables[row] = resolve(tree, row)
        except (Absent, ImportFailed):
            continue
    return surface


def resolve(tree: Tree, row: str) -> tuple[FunctionType, ...]:
    """The Python functions behind one entry point.

    Raises:
        Absent: the tree has no such name.
        ImportFailed: its module cannot be imported.
    """
    module_name, _, dotted = row.partition(":")
    module = load(tree, module_name)
    owner_name, _, name = dotted.rpartition(".")
    owner = attribute(module, owner_name) if owner_name else module
    attribute(module, dotted)
    value = inspect.getattr_static(owner, name)
    if isinstance(value, type):
        value = vars(value).get("__init__") or vars(value).get("__new__")
    return tuple(functions_in(value))


def expand(tree: Tree, row: str) -> list[str]:
    """The entry points that a declaration stands for; itself when it has no `*`."""
    if "*" not in row:
        return [row]
    module = load(tree, row.partition(":")[0])
    found = _public_of(module, row.partition(":")[0])
    return sorted(fnmatch.filter(found, row))


_WILD = frozenset("*?[")


def missing(
    public: Iterable[str], declared: Iterable[str], exempt: Iterable[str]
) -> tuple[list[str], list[str]]:
    """What nobody covers, and exemptions that name nothing or something that is covered."""
    public, declared, exempt = set(public), set(declared), set(exempt)
    patterns = [row for row in declared if _WILD.intersection(row)]
    covered = public & declared | {name for row in patterns for name in fnmatch.filter(public, row)}
    uncovered = sorted(public - covered - exempt)
    return uncovered, sorted(exempt - (public - covered))


def declared() -> list[str]:
    """Everything that the cases imported so far declare, whether or not they were collected."""
    return list(_declared)


class CallLog:
    """Which entry points have been called since the watch began."""

    def __init__(self, targets: dict[str, tuple[FunctionType, ...]]) -> None:
        self._targets = targets
        self._called: set[FunctionType] = set()

    @property
    def uncalled(self) -> list[str]:
        """Entry points none of whose functions was called."""
        return [
            row
            for row, functions in self._targets.items()
            if functions and not self._called.intersection(functions)
        ]

    @contextmanager
    def watching(self) -> Iterator[CallLog]:
        """Watch within a block; each function costs one exchange, and its first call another."""
        watches = [
            self._watch(f) for f in {f for functions in self._targets.values() for f in functions}
        ]
        for watch in watches:
            watch.on()
        try:
            yield self
        finally:
            for watch in watches:
                watch.off()

    def _watch(self, function: FunctionType) -> FunctionWatch:
        def around(plain: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._called.add(function)
            watch.off()
            return function(*args, **kwargs)

        watch = FunctionWatch(function, around)
        return watch


def _public_of(module: ModuleType, below: str) -> dict[str, tuple[FunctionType, ...]]:
    found: dict[str, tuple[FunctionType, ...]] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, type):
            if not getattr(value, "_is_protocol", False):
                found.update(_public_methods(value, f"{below}:{name}"))
        elif functions := _written_in(module, value):
            found[f"{below}:{name}"] = functions
    return found


def _public_methods(cls: type, row: str) -> dict[str, tuple[FunctionType, ...]]:
    module = importlib.import_module(cls.__module__)
    found = {}
    for name, member in vars(cls).items():
        if name == "__init__" and (functions := _written_in(module, member)):
            found[row] = functions
        elif not name.startswith("_") and (functions := _written_in(module, member)):
            found[f"{row}.{name}"] = functions
    return found


def _written_in(module: ModuleType, value: Any) -> tuple[FunctionType, ...]:
    kinds = (property, staticmethod, classmethod)
    if isinstance(value, type) or not (callable(value) or isinstance(value, kinds)):
        return ()
    return tuple(
        f
        for f in functions_in(value)
        if f.__module__ == module.__name__ and not f.__code__.co_filename.startswith("<")
    )
