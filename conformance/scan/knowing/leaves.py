"""The values that a device expression can take, each with what is known where it does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from conformance.scan.findings import Severity
from conformance.scan.knowing.conditions import Conditions
from conformance.scan.knowing.facts import Facts
from conformance.scan.knowing.resolve import Resolver
from conformance.scan.knowing.scopes import Key, Scope


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value that a device expression can take, where it is written and what is known there.

    ``device`` is its type, None when unknown; ``key`` the variable it is read from; ``fallback``
    says that it stands in for a missing value (``device or "cuda"``).
    """

    node: ast.expr
    device: str | None
    facts: Facts
    key: Key | None = None
    fallback: bool = False
    chosen: bool = False


class Judging(Protocol):
    """Whoever decides about the values of a device, once it is known where they end up."""

    def __call__(
        self,
        leaves: list[Leaf],
        how: str,
        scope: Scope,
        *,
        others: list[Leaf] | None = None,
        standing_in: bool = False,
        severity: Severity | None = None,
        key: Key | None = None,
    ) -> None:
        """``how`` names the place; ``others`` are the values of all bindings of a variable, which
        ``key`` is."""


class Leaves:
    """Takes device expressions apart, through choices and short circuits, down to their values."""

    def __init__(self, resolver: Resolver, conditions: Conditions) -> None:
        self._resolver = resolver
        self._conditions = conditions

    def of(
        self,
        node: ast.expr,
        scope: Scope,
        facts: Facts,
        fallback: bool = False,
        chosen: bool = False,
    ) -> Iterator[Leaf]:
        """Every value that a device expression can take, with what is known where it does."""
        device = self._resolver.literal(node, scope)
        if device is not None:
            yield Leaf(node, device, facts, None, fallback, chosen)
            return
        match node:
            case ast.IfExp():
                true, false = self._conditions.of(node.test, scope)
                none_test = _tests_none(node.test)
                yield from self.of(node.body, scope, facts.both(true), none_test == "body", True)
                yield from self.of(
                    node.orelse, scope, facts.both(false), none_test == "orelse", True
                )
            case ast.BoolOp():
                yield from self._short_circuit(node, scope, facts)
            case ast.NamedExpr():
                yield from self.of(node.value, scope, facts, fallback, chosen)
            case ast.Call(args=[first, *_]) if self._resolver.wraps_device(node, scope):
                yield from self.of(first, scope, facts, fallback, chosen)
            case ast.Subscript(value=ast.Tuple(elts=[no, yes]) | ast.List(elts=[no, yes])):
                true, false = self._conditions.of(node.slice, scope)
                yield from self.of(yes, scope, facts.both(true), False, True)
                yield from self.of(no, scope, facts.both(false), False, True)
            case ast.Subscript(value=ast.Dict() as table):
                true, false = self._conditions.of(node.slice, scope)
                for name, value in zip(table.keys, table.values, strict=True):
                    side = true if isinstance(name, ast.Constant) and name.value else false
                    yield from self.of(value, scope, facts.both(side), False, True)
            case ast.Attribute(value=ast.BoolOp() | ast.IfExp() as inner, attr="type"):
                yield from self.of(inner, scope, facts, fallback, chosen)
            case ast.JoinedStr(values=[ast.FormattedValue(value=first), *_]):
                yield from self.of(first, scope, facts, fallback, chosen)
            case _:
                yield Leaf(node, None, facts, self._resolver.key(node, scope), fallback, chosen)

    def _short_circuit(self, node: ast.BoolOp, scope: Scope, facts: Facts) -> Iterator[Leaf]:
        """``device or "cuda"``, ``torch.cuda.is_available() and "cuda" or "cpu"``."""
        conjunction = isinstance(node.op, ast.And)
        through = facts
        for index, value in enumerate(node.values):
            last = index == len(node.values) - 1
            true, false = self._conditions.of(value, scope)
            if conjunction and not last:
                through = through.both(true)
                continue
            stands_in = not conjunction and index > 0 and false.known == true.known
            yield from self.of(value, scope, through, stands_in, index > 0)
            if not conjunction:
                through = through.both(false)


def _tests_none(test: ast.expr) -> str:
    """Which branch of a conditional stands in for a missing value, if any."""
    match test:
        case ast.Compare(ops=[ast.Is() | ast.Eq()], comparators=[ast.Constant(value=None)]):
            return "body"
        case ast.Compare(ops=[ast.IsNot() | ast.NotEq()], comparators=[ast.Constant(value=None)]):
            return "orelse"
        case ast.UnaryOp(op=ast.Not(), operand=ast.Name() | ast.Attribute()):
            return "body"
        case ast.Name(id=name) | ast.Attribute(attr=name) if "device" in name.lower():
            return "orelse"
        case _:
            return ""
