"""A point of the program: where the walk stands in a file, and what is known there."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from conformance.scan.knowing.alternatives import Alternatives, calls, moves_like, stores
from conformance.scan.knowing.conditions import Conditions
from conformance.scan.knowing.facts import ANY, NOTHING, Facts
from conformance.scan.knowing.leaves import Leaf, Leaves
from conformance.scan.knowing.paths import is_benchmark, is_test
from conformance.scan.knowing.resolve import Resolver
from conformance.scan.knowing.scopes import Key, Scope
from conformance.scan.knowing.vocabulary import asks_other
from conformance.scan.reading.lines import HotLines
from conformance.scan.reading.nodes import parts_of, parts_on
from conformance.scan.reading.source import Source

T = TypeVar("T")


class Point:
    """Scope, facts and statement of the walk in one file, and what has been said of its nodes.

    Of the sets of nodes (by ``id``), ``consumed`` holds what was looked at where it stands
    (placed somewhere, or only compared), ``settled`` what nothing more is to be said of,
    ``positive`` the lists that only open a branch, and ``refusing`` the parts of a test whose
    other branch raises.
    """

    def __init__(self, source: Source, resolver: Resolver) -> None:
        self.source = source
        #: Whether the file is a test, or a benchmark, by its name or folder.
        self.in_tests = is_test(source.path)
        self.measures = is_benchmark(source.path)
        self.resolver = resolver
        self.conditions = Conditions(resolver)
        self.scope: Scope = resolver.scopes.module
        self.facts: Facts = NOTHING
        self.statement: ast.stmt = ast.Pass()
        self.branches: list[ast.expr] = []
        self.decorating = False
        #: Functions, as the file spells them, that do not come back without CUDA.
        self.guarding: frozenset[str] = frozenset()
        #: Modules that the file imports and that are built for CUDA alone.
        self.extensions: frozenset[str] = frozenset()
        #: Those of ``guarding`` that the file itself defines.
        self.refusing_own: set[str] = set()
        self.consumed: set[int] = set()
        self.positive: set[int] = set()
        self.settled: set[int] = set()
        self.refusing: set[int] = set()
        self._leaves = Leaves(resolver, self.conditions)
        self.alternatives = Alternatives(resolver.scopes.module.node)
        self._lines: dict[tuple[str, ...], HotLines] = {}
        self._told: dict[tuple[object, int], Any] = {}

    def once(self, about: Callable[[Point, ast.AST], T], node: ast.AST) -> T:
        """What is so of a node of this file, a function or a class, wherever it is asked: worked
        out once, for a function of a thousand lines may ask it on each of them."""
        key = about, id(node)
        if key not in self._told:
            self._told[key] = about(self, node)
        held: T = self._told[key]
        return held

    def parts_of(self, node: ast.AST) -> list[ast.AST]:
        """A node and all below it, found once."""
        return self.once(_parts, node)

    def parts_saying(self, node: ast.AST, *words: str) -> Iterator[ast.AST]:
        """The parts of a node on lines that hold one of some words, and what these stand in."""
        lines = self._lines.get(words)
        if lines is None:
            found = re.finditer("|".join(map(re.escape, words)), self.source.text)
            lines = HotLines(self.source.line_of(match.start()) for match in found)
            self._lines[words] = lines
        return parts_on(node, lines) if lines.numbers else iter(())

    def dotted(self, node: ast.expr | None) -> str | None:
        """Dotted path that an expression names in the current scope."""
        return self.resolver.dotted(node, self.scope)

    def leaves(self, node: ast.expr) -> list[Leaf]:
        """Values that a device expression can take here."""
        return list(self._leaves.of(node, self.scope, self.facts))

    def guarded(self, *backends: str) -> bool:
        """Whether one of the backends is known to be in use here."""
        return any(self.facts.guard(backend) is not None for backend in backends)

    def probed_only(self, backend: str) -> ast.AST | None:
        """The availability test that is the only guard of a backend here, if that is so."""
        guard = self.facts.guard(backend)
        return guard.node if guard is not None and guard.kind == "probe" else None

    def bounds_a_loop(self, node: ast.expr) -> bool:
        """Whether a value bounds a loop or a comprehension of its statement, or is stored in a
        variable that does."""
        names = {t.id for t in getattr(self.statement, "targets", ()) if isinstance(t, ast.Name)}
        held, spoken = self.once(_loops, self.scope.node if names else self.statement)
        return id(node) in held or not names.isdisjoint(spoken)

    def choice_serves(self, node: ast.expr, scope: Scope, key: Key | None = None) -> bool:
        """Whether a choice of CUDA knows a Mac's GPU as well: in the expression, in the branches
        around it or beside it, or where its variable is bound again."""
        beside = self.alternatives
        if beside.around(node, self.statement):
            return True
        name = key[1] if key is not None else ""
        does = (
            stores(name) if name and not name.startswith("return") else moves_like(self.statement)
        )
        if beside.beside(self.statement, does):
            return True
        if key is None:
            return False
        owner = self.resolver.scopes.at(key[0])
        bounds = owner.names.get(name, []) if owner is not None else []
        return any(beside.bound(bound.node) for bound in bounds)

    def call_serves(self, node: ast.expr, names: frozenset[str]) -> bool:
        """Whether what a call does for CUDA is done for another accelerator by one of these
        functions, in the branches around it or beside it."""
        if any(backend not in ("cuda", "cpu", ANY) for backend in self.facts.excluded):
            return True
        beside = self.alternatives
        return beside.around(node, self.statement, asks_other) or beside.beside(
            self.statement, calls(names), asks_other
        )


def _parts(_: Point, node: ast.AST) -> list[ast.AST]:
    return parts_of(node)


def _loops(point: Point, area: ast.AST) -> tuple[set[int], set[str]]:
    """What stands in the bounds of the loops of an area: the nodes, and the names."""
    parts = [
        part
        for loop in point.parts_of(area)
        if isinstance(loop, ast.For | ast.AsyncFor | ast.comprehension)
        for part in parts_of(loop.iter)
    ]
    return {id(part) for part in parts}, {p.id for p in parts if isinstance(p, ast.Name)}
