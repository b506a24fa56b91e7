"""A point of the program: where the walk stands in a file, and what is known there."""

from __future__ import annotations

import ast

from conformance.scan.knowing.conditions import Conditions
from conformance.scan.knowing.facts import NOTHING, Facts
from conformance.scan.knowing.leaves import Leaf, Leaves
from conformance.scan.knowing.resolve import Resolver
from conformance.scan.knowing.scopes import FunctionNode, Scope
from conformance.scan.knowing.vocabulary import asks_other
from conformance.scan.reading.source import Source


class Point:
    """Scope, facts and statement of the walk in one file, and what has been said of its nodes.

    Of the sets of nodes (by ``id``), ``consumed`` holds what was looked at where it stands
    (placed somewhere, or only compared), ``settled`` what nothing more is to be said of,
    ``positive`` the lists that only open a branch, and ``refusing`` the parts of a test whose
    other branch raises.
    """

    def __init__(self, source: Source, resolver: Resolver) -> None:
        self.source = source
        self.resolver = resolver
        self.conditions = Conditions(resolver)
        self.scope: Scope = resolver.scopes.module
        self.facts: Facts = NOTHING
        self.statement: ast.stmt = ast.Pass()
        self.branches: list[ast.expr] = []
        self.decorating = False
        self.consumed: set[int] = set()
        self.positive: set[int] = set()
        self.settled: set[int] = set()
        self.refusing: set[int] = set()
        self._leaves = Leaves(resolver, self.conditions)
        self._asks: dict[int, bool] = {}

    def dotted(self, node: ast.expr | None) -> str | None:
        """Dotted path that an expression names in the current scope."""
        return self.resolver.dotted(node, self.scope)

    @property
    def in_tests(self) -> bool:
        """Whether the file is a test by its name or folder."""
        parts = self.source.path.split("/")
        folders = ("tests", "test", "testing")
        return not set(folders).isdisjoint(parts) or parts[-1].startswith(("test_", "conftest"))

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

    def asks_others(self, scope: Scope | None = None) -> bool:
        """Whether the enclosing function (or the module's own statements) speaks of another
        accelerator than CUDA, in a name, an attribute or a string."""
        scope = scope or self.scope
        owner = scope.enclosing("function") or scope
        known = self._asks.get(id(owner.node))
        if known is None:
            known = self._asks[id(owner.node)] = _mentions_other(owner.node)
        return known


def _mentions_other(owner: ast.AST) -> bool:
    stack: list[ast.AST] = list(ast.iter_child_nodes(owner))
    in_module = isinstance(owner, ast.Module)
    while stack:
        node = stack.pop()
        if in_module and isinstance(node, FunctionNode | ast.ClassDef):
            continue
        if isinstance(node, ast.Name):
            word = node.id
        elif isinstance(node, ast.Attribute):
            word = node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # A sentence (a docstring, a message) mentions much that the code does not do.
            word = node.value if len(node.value) < 40 and " " not in node.value else ""
        elif isinstance(node, ast.alias):
            word = node.asname or node.name
        else:
            word = ""
        if word and asks_other(word):
            return True
        stack.extend(ast.iter_child_nodes(node))
    return False
