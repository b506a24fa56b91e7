"""A second look at a file, for what the project wants to know of some names in it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from conformance.scan.judging.analysis import walk
from conformance.scan.judging.rule import Hook
from conformance.scan.judging.summary import Call, Report
from conformance.scan.knowing.binding import Binding
from conformance.scan.knowing.circumstances import is_left_by_one, serves_group
from conformance.scan.knowing.foreign import ALONE, Foreign
from conformance.scan.knowing.handed import Handed
from conformance.scan.knowing.point import Point
from conformance.scan.knowing.reach import in_use
from conformance.scan.knowing.scopes import FunctionNode
from conformance.scan.knowing.signatures import (
    Parameter,
    is_bound,
    is_plain,
    parameters_of,
    spelled,
)
from conformance.scan.reading import prefilter
from conformance.scan.reading.lines import HotLines, line_numbers
from conformance.scan.reading.nodes import parts_of, parts_on
from conformance.scan.reading.notebooks import NotebookError, read_notebook
from conformance.scan.reading.source import AS_UTF8, Source, SourceError, decode

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def look(
    path: str, data: bytes, names: Iterable[str], own: Iterable[str], foreign: Foreign
) -> Report:
    """What a file does with ``names`` (as it spells them; a method with a dot before it, whatever
    it is called on), and what its ``own`` functions do.

    A file that cannot be read speaks of nothing.
    """
    report = Report()
    try:
        if path.endswith(".ipynb"):
            text, encoding = read_notebook(data).text, "utf-8"
        else:
            text, encoding = decode(data)
        source = Source(path, text, encoding)
        if encoding not in AS_UTF8 or path.endswith(".ipynb"):
            data = text.encode("utf-8", "surrogatepass")
        wanted, defined = set(names), set(own)
        words = {name.rpartition(".")[2] for name in wanted}
        words |= {part for name in defined for part in name.split(".")}
        spoken = prefilter.occurrences(data, words)
        if not words:
            spoken = prefilter.find_all(data, b"import")
        elif not defined and wanted == words and len(spoken) <= len(words):
            return report  # it only defines or imports the names
        if words and not defined and not prefilter.mentions(data, wanted):
            return report
        if defined and not wanted:
            offsets = _definition_offsets(data, words)  # the rest of the file adds nothing
        else:
            if defined:
                spoken += prefilter.find_all(data, b"__init__")
            offsets = prefilter.hot_offsets(data, prefilter.hot_words(data))
            offsets = sorted({*offsets, *spoken})
            if words and not defined:
                offsets = prefilter.around(data, offsets, sorted(spoken))
        binding = Binding(data, offsets, plain=encoding in AS_UTF8, foreign=foreign)
    except (SourceError, NotebookError):
        return report
    binding.complete()
    definitions = _definitions(binding.tree, defined)
    parameters = {name: parameters_of(node)[0] for name, node in definitions.items()}
    given = {parameter.name for every in parameters.values() for parameter in every}
    if given:
        areas = [(node.lineno, node.end_lineno or node.lineno) for node in definitions.values()]
        binding.take_in(words | given, areas if not wanted else None)
        definitions = _definitions(binding.tree, defined)
    lines = HotLines(line_numbers(data, sorted(spoken)))
    _Looker(report, wanted, source, binding, lines).run(definitions)
    return report


def _definition_offsets(data: bytes, names: Iterable[str]) -> list[int]:
    """Where functions and classes of these names are defined, and what makes objects of them."""
    found: list[int] = []
    for name in {*names, "__init__"}:
        for keyword in (b"def ", b"class "):
            found += prefilter.find_all(data, keyword + name.encode("utf-8", "surrogatepass"))
    return sorted(found)


def _definitions(tree: ast.Module, names: set[str]) -> dict[str, Definition]:
    """Functions and classes of the module, and methods as ``Class.method``."""
    found: dict[str, Definition] = {}
    for node in tree.body:
        if isinstance(node, FunctionNode | ast.ClassDef) and node.name in names:
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, FunctionNode) and f"{node.name}.{inner.name}" in names:
                    found[f"{node.name}.{inner.name}"] = inner
    return found


#: What starts processes with a function: as good as a call of it.
_STARTERS = frozenset({"spawn", "start_processes", "Process"})


class _Looker:
    def __init__(
        self, report: Report, names: set[str], source: Source, binding: Binding, lines: HotLines
    ) -> None:
        """``lines`` are those on which one of the names stands."""
        self.report, self.names = report, names
        self._lines = lines
        self.source, self.binding = source, binding
        self._seen: set[int] = set()
        self._takers: dict[int, list[tuple[str, set[str]]]] = {}

    def run(self, definitions: dict[str, Definition]) -> None:
        tree, report = self.binding.tree, self.report
        for name, node in definitions.items():
            given, taker = parameters_of(node)
            taken = self._takers.setdefault(id(taker), [])
            taken.append((name, {parameter.name for parameter in given}))
        hooks: dict[str, Hook] = {"call": self._call, "import": self._import}
        context, placements = walk(self.source, self.binding, [hooks])
        report.otherwise.update(self._otherwise(tree))
        for statement in tree.body:
            name = getattr(statement, "name", "")
            if name in self.names and not is_plain(statement):
                report.otherwise.add(name)
        for name, node in definitions.items():
            given, taker = parameters_of(node)
            asks = _asks(taker)
            if name.count(".") and given and is_bound(node):
                given = [Parameter(p.name, p.place - 1, p.default) for p in given[1:]]
            report.parameters[name] = [
                (
                    ("*" if p.place < 0 else "") + p.name,
                    "" if asks else _how(p.name, taker, name, placements.used),
                )
                for p in given
            ]
        module = id(context.resolver.scopes.module.node)
        for (owner, name), how in placements.used.items():
            if owner == module and name in self.names:
                report.used[name] = how

    def _otherwise(self, tree: ast.Module) -> Iterator[str]:
        """Names that are mentioned where nothing is called: handed on, or not looked at."""
        lasts = {name.rpartition(".")[2] for name in self.names}
        left = [
            node
            for node in (parts_on(tree, self._lines) if lasts else ())
            if isinstance(node, ast.Name | ast.Attribute)
            and (node.id if isinstance(node, ast.Name) else node.attr) in lasts
            and isinstance(node.ctx, ast.Load)
            and (spelled(node) in self.names or f".{_last(node)}" in self.names)
            and id(node) not in self._seen
        ]
        passive = _passive(tree) if left else set()
        for node in left:
            if id(node) not in passive:
                yield spelled(node)
                if isinstance(node, ast.Attribute):
                    yield f".{node.attr}"

    def _call(self, point: Point, node: ast.Call) -> None:
        function: ast.expr = node.func
        name = spelled(function)
        if name.rpartition(".")[2] in _STARTERS:
            self._started(point, node)
        for keyword in node.keywords:
            if keyword.arg == "default_factory":
                self._called_for(point, keyword.value, 0)
        if self._takers:
            self._forwarded(point, node)
        if isinstance(function, ast.Attribute) and f".{function.attr}" in self.names:
            self._called(point, node, f".{function.attr}", whole=True)
        if name not in self.names and isinstance(function, ast.Attribute):
            function = function.value  # a method of a class that is meant
            name = spelled(function)
        if name not in self.names:
            return
        self._seen.add(id(function))
        self._called(point, node, name, whole=function is node.func)

    def _called(self, point: Point, node: ast.Call, name: str, *, whole: bool) -> None:
        """Write down a call; ``whole`` if its arguments are those of what is asked for."""
        self._seen.add(id(node.func))
        starred = any(isinstance(a, ast.Starred) for a in node.args) or any(
            k.arg is None for k in node.keywords
        )
        known = in_use(point)
        if serves_group(point, point.scope.enclosing("function")) or is_left_by_one(point):
            known = known | {"cuda"}  # one of several processes, each with a card of its own
        call = Call(
            tuple(sorted(known)),
            point.scope.qualname.partition(".")[0],
            len(node.args) if whole and not starred else -1,
            tuple(k.arg for k in node.keywords if k.arg),
        )
        self.report.calls.setdefault(name, []).append(call)

    def _forwarded(self, point: Point, node: ast.Call) -> None:
        """A parameter that a function hands on as it is."""
        owner = point.scope.enclosing("function")
        taken = self._takers.get(id(owner.node), ()) if owner is not None else ()
        for name, parameters in taken:
            given = [(str(place), value) for place, value in enumerate(node.args)]
            given += [(k.arg, k.value) for k in node.keywords if k.arg]
            for which, value in given:
                if isinstance(value, ast.Name) and value.id in parameters:
                    text = Handed(point, ALONE).callee(node.func)
                    if text:
                        every = self.report.forwards.setdefault(name, [])
                        every.append((value.id, text, which))

    def _started(self, point: Point, node: ast.Call) -> None:
        """A function that is handed to new processes is called by them, from here."""
        handed = [*node.args[:1], *(k.value for k in node.keywords if k.arg in ("target", "fn"))]
        for part in handed:
            self._called_for(point, part, -1)

    def _called_for(self, point: Point, part: ast.expr, places: int) -> None:
        """A function that is handed to a call of another, which calls it with so many arguments
        (-1: with what is not seen)."""
        name = spelled(part)
        if name in self.names:
            self._seen.add(id(part))
            owner = point.scope.qualname.partition(".")[0]
            call = Call(tuple(sorted(in_use(point))), owner, places, ())
            self.report.calls.setdefault(name, []).append(call)

    def _import(self, point: Point, node: ast.Import | ast.ImportFrom) -> None:
        known: tuple[str, ...] | None = tuple(sorted(in_use(point)))
        if any(spelled(test).endswith("TYPE_CHECKING") for test in point.branches):
            known = None
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                key = f"{'.' * node.level}{node.module or ''}:{alias.name}"
            else:
                key = f"{alias.name}:"
            self.report.imports.setdefault(key, []).append(known)


def _last(node: ast.Name | ast.Attribute) -> str:
    return node.attr if isinstance(node, ast.Attribute) else ""


def _passive(tree: ast.Module) -> set[int]:
    """Names that are only spoken of: annotations, tests of a type, the class in ``super(A, self)``."""
    found: set[int] = set()
    for node in parts_of(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, FunctionNode):
            parts = [node.returns]
        elif isinstance(node, ast.Call) and spelled(node.func) == "isinstance":
            parts = list(node.args[1:])
        elif isinstance(node, ast.Call) and spelled(node.func) == "super":
            parts = list(node.args[:1])
        found.update(id(inner) for part in parts if part is not None for inner in parts_of(part))
    return found


def _asks(function: ast.AST) -> bool:
    """Whether a function asks what there is, and may do without what it is given."""
    return any(
        isinstance(part, ast.Attribute) and part.attr == "is_available"
        for part in parts_of(function)
    )


def _how(parameter: str, taker: ast.AST, name: str, used: dict[tuple[int, str], str]) -> str:
    """Where a parameter, or a field of a class, ends up as a device."""
    held = f"self.{parameter}" if isinstance(taker, ast.ClassDef) else parameter
    place = used.get((id(taker), held))
    if place is None:
        return ""
    shown = f"`{parameter}` of {name.rpartition('.')[2]}()"
    return shown if place[0] == "`" else f"{shown} (used in {place})"
