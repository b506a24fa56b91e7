"""The walk over expressions: facts through conditions inside them, nodes shown to the rules."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping

from conformance.scan.judging.context import Context
from conformance.scan.judging.rule import Hook
from conformance.scan.knowing.facts import NOTHING, Facts
from conformance.scan.knowing.flags import probed_backend
from conformance.scan.knowing.placements import Placements
from conformance.scan.reading.lines import HotLines
from conformance.scan.reading.nodes import parts_of

#: What holds no expression to look into.
_LEAVES = frozenset(
    {int, str, type(None), ast.Constant, ast.Name}.union(
        *(
            base.__subclasses__()
            for base in (ast.expr_context, ast.operator, ast.boolop, ast.cmpop, ast.unaryop)
        )
    )
)


class Expressions:
    """Walks expressions; every rule sees every hot node with what is known there."""

    def __init__(
        self,
        context: Context,
        placements: Placements,
        hooks: Iterable[Mapping[str, Hook]],
        hot: HotLines,
    ) -> None:
        self.context = context
        self.placements = placements
        self.resolver = context.resolver
        self.conditions = context.conditions
        self.hot = hot
        self.hooks: dict[str, list[Hook]] = {}
        for group in hooks:
            for kind, hook in group.items():
                self.hooks.setdefault(kind, []).append(hook)

    def _show(self, kind: str, node: ast.AST) -> None:
        for hook in self.hooks.get(kind, ()):
            hook(self.context, node)

    def _test(self, test: ast.expr, facts: Facts) -> None:
        """A condition: comparisons in it choose a branch and are not values."""
        for node in parts_of(test):
            if isinstance(node, ast.Compare | ast.Attribute):
                self.context.consumed.add(id(node))
        self.expression(test, facts)

    def expression(self, node: ast.expr, facts: Facts) -> None:
        """Walk an expression and show its nodes to the rules."""
        kind = type(node)
        if kind is ast.Name or kind is ast.Constant:
            return
        first, last = node.lineno, node.end_lineno or node.lineno
        if last > first and not self.hot.any(first, last):
            return
        self.context.facts = facts
        if kind is ast.Call:
            self.placements.call(node)  # type: ignore[arg-type]
            self._show("call", node)
            self._children(node, facts)
        elif kind is ast.BoolOp:
            self._bool_op(node, facts)  # type: ignore[arg-type]
        elif kind is ast.IfExp:
            self._show("ifexp", node)
            self._if_exp(node, facts)  # type: ignore[arg-type]
        elif kind is ast.Compare:
            self._compare(node, facts)  # type: ignore[arg-type]
        elif kind in (ast.List, ast.Tuple, ast.Set):
            self._show("collection", node)
            self._children(node, facts)
        elif kind is ast.Dict:
            self.placements.dictionary(node)  # type: ignore[arg-type]
            self._children(node, facts)
        elif kind is ast.Subscript:
            self._show("subscript", node)
            self._children(node, facts)
        elif kind is ast.Attribute:
            self._show("attribute", node)
            self._children(node, facts)
        elif kind in (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp):
            self._comprehension(node, facts)
        else:
            self._children(node, facts)

    def _children(self, node: ast.AST, facts: Facts) -> None:
        for child in node.__dict__.values():
            kind = type(child)
            if kind is list:
                for item in child:
                    self._child(item, facts)
            elif kind not in _LEAVES:
                self._child(child, facts)

    def _child(self, child: object, facts: Facts) -> None:
        if isinstance(child, ast.expr):
            self.expression(child, facts)
        elif isinstance(child, ast.AST):
            self._children(child, facts)

    def _compare(self, node: ast.Compare, facts: Facts) -> None:
        context = self.context
        self.placements.compared(node)
        self._show("compare", node)
        for part in [node.left, *node.comparators]:
            # Of `torch.device("cuda").type` the device is compared as well, not used.
            context.consumed.update((id(part), id(getattr(part, "value", part))))
        if not isinstance(context.statement, ast.Assert):
            # A list that only opens a branch refuses nothing, unless the other one raises.
            context.positive.update(
                id(right)
                for op, right in zip(node.ops, node.comparators, strict=True)
                if isinstance(op, ast.In) and id(node) not in context.refusing
            )
        self._children(node, facts)

    def _bool_op(self, node: ast.BoolOp, facts: Facts) -> None:
        conjunction = isinstance(node.op, ast.And)
        for value in node.values:
            if conjunction and isinstance(value, ast.Compare | ast.Attribute):
                # One condition of several opens a fast path; it does not divide the devices.
                self.context.consumed.add(id(value))
            self.expression(value, facts)
            true, false = self.conditions.of(value, self.context.scope)
            # After an `or`, that the device is not the CPU is one case of several, no reasoning.
            facts = facts.both(true if conjunction else Facts(false.known, {}))

    def _if_exp(self, node: ast.IfExp, facts: Facts) -> None:
        true, false = self.conditions.of(node.test, self.context.scope)
        self._test(node.test, facts)
        self.expression(node.body, facts.both(true))
        self.expression(node.orelse, facts.both(false))

    def _counted(self, iterated: ast.expr) -> Facts:
        """What runs for each of a backend's devices runs only where there is one."""
        facts = NOTHING
        for part in parts_of(iterated):
            if isinstance(part, ast.Name):
                held = self.resolver.only_value(part, self.context.scope)
                part = held[0] if held is not None else part
            if isinstance(part, ast.Call):
                backend = probed_backend(self.context.dotted(part.func) or "")
                if backend is not None:
                    # Not a probe: a loop over cards is for several of them, and chooses none.
                    facts = facts.knowing("name", backend, node=part)
        return facts

    def _comprehension(self, node: ast.expr, facts: Facts) -> None:
        inner = facts
        for generator in node.generators:  # type: ignore[attr-defined]
            self.expression(generator.iter, facts)
            inner = inner.both(self._counted(generator.iter))
            for test in generator.ifs:
                self._test(test, inner)
                inner = inner.both(self.conditions.of(test, self.context.scope)[0])
        for name in ("elt", "key", "value"):
            part = getattr(node, name, None)
            if part is not None:
                self.expression(part, inner)
