"""The one walk over a file: carries facts through its statements' control flow."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from conformance.scan.judging.expressions import Expressions
from conformance.scan.knowing.facts import ANY, Facts, known
from conformance.scan.knowing.handlers import expects, is_for_older, is_of_cuda
from conformance.scan.knowing.markers import (
    declared,
    decorators_say,
    exits,
    fixtures_say,
    leaves_without,
    module_marker,
    refused,
    refuses,
    refuses_by_call,
    set_up,
    wraps_for_cards,
)
from conformance.scan.knowing.packages import (
    imported_modules,
    imported_packages,
    needed_package,
    provided_backend,
    wraps_engine,
)
from conformance.scan.knowing.shapes import passes_through, pattern_devices, pattern_truth
from conformance.scan.knowing.signatures import spelled
from conformance.scan.reading.nodes import parts_of


class Walker(Expressions):
    """Walks one module once, statement by statement, and the expressions in them."""

    def run(self, tree: ast.Module, facts: Facts) -> None:
        """Walk a module under the facts that its path teaches."""
        self.block(tree.body, facts.both(module_marker(self.context, tree)))
        self._show("finish", tree)

    def block(self, body: list[ast.stmt], facts: Facts) -> Facts | None:
        """Walk statements; returns the facts after them, None when control never gets there."""
        current: Facts | None = facts
        for statement in body:
            after = self.statement(statement, current or facts)
            if current is not None:
                current = after
        return current

    def statement(self, node: ast.stmt, facts: Facts) -> Facts | None:
        """Walk one statement; returns the facts after it."""
        kind = type(node)
        decorators: list[ast.expr] = getattr(node, "decorator_list", [])
        first = decorators[0].lineno if decorators else node.lineno
        imports = kind in (ast.Import, ast.ImportFrom)
        if imports or self.hot.any(first, node.end_lineno or node.lineno):
            handler = _HANDLERS.get(kind)
            context = self.context
            outer = context.statement
            context.statement = node
            context.facts = facts
            try:
                after = (handler or Walker._plain)(self, node, facts)
            finally:
                context.statement = outer
            # The head of a chain looks to its end; each of its parts need not do so again.
            head = kind is ast.If and not (isinstance(outer, ast.If) and outer.orelse == [node])
            if after is not None and head and leaves_without(context, node, telling=True):
                return after.knowing("name", "cuda", node=node)
            if after is None or kind is not ast.Expr:
                return after
            facts = after
        if kind in (ast.Return, ast.Raise, ast.Continue, ast.Break):
            return None
        if kind is ast.Expr:
            if exits(self.context, node.value):  # type: ignore[attr-defined]
                return None
            if refuses_by_call(self.context, node.value):  # type: ignore[attr-defined]
                return facts.knowing("name", "cuda", node=node)
        return facts

    def _plain(self, node: ast.stmt, facts: Facts) -> Facts | None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.expression(child, facts)
            elif isinstance(child, ast.stmt):
                self.statement(child, facts)
        return facts

    def _on_Expr(self, node: ast.Expr, facts: Facts) -> Facts:  # noqa: N802
        if not isinstance(node.value, ast.Constant):
            self.expression(node.value, facts)
        return facts

    def _on_Import(self, node: ast.Import | ast.ImportFrom, facts: Facts) -> Facts:  # noqa: N802
        self._show("import", node)
        context = self.context
        inner = bool(context.branches) or context.scope.kind == "function"
        if needed_package(node) is not None or (
            inner
            and not context.extensions.isdisjoint(
                (*imported_packages(node), *imported_modules(node))
            )
        ):
            # What follows cannot be reached without the package: one finding says it all.
            return facts.knowing("name", "cuda", node=node)
        backend = provided_backend(node)
        return facts if backend is None else facts.knowing("name", backend, node=node)

    _on_ImportFrom = _on_Import  # noqa: N815

    def _on_Assign(self, node: ast.Assign, facts: Facts) -> Facts:  # noqa: N802
        for target in node.targets:
            self.placements.assign(target, node.value)
        self._show("assign", node)
        self.context.facts = facts
        for target in node.targets:
            self.expression(target, facts)
        self.expression(node.value, facts)
        return facts

    def _on_AnnAssign(self, node: ast.AnnAssign, facts: Facts) -> Facts:  # noqa: N802
        self._show("assign", node)
        if node.value is not None:
            self.placements.assign(node.target, node.value)
            self.expression(node.value, facts)
        self.expression(node.annotation, facts)
        return facts

    def _on_Return(self, node: ast.Return, facts: Facts) -> None:  # noqa: N802
        if node.value is not None:
            self.placements.returned(node.value)
            self._show("return", node)
            self.expression(node.value, facts)

    def _on_Raise(self, node: ast.Raise, facts: Facts) -> None:  # noqa: N802
        self._plain(node, facts)

    def _on_Assert(self, node: ast.Assert, facts: Facts) -> Facts:  # noqa: N802
        self.expression(node.test, facts)
        true, _ = self.conditions.of(node.test, self.context.scope)
        return facts.both(true.declared(node))

    def _on_If(self, node: ast.If, facts: Facts) -> Facts | None:  # noqa: N802
        context = self.context
        true, false = self.conditions.of(node.test, context.scope)
        context.branches.append(node.test)
        if passes_through(node):
            context.settled.update(id(part) for part in parts_of(node.test))
        if refuses(node.orelse):
            context.refusing.update(id(part) for part in parts_of(node.test))
        self._show("if", node)
        self._test(node.test, facts)
        after_true = self.block(node.body, facts.both(true))
        context.branches.pop()
        context.branches.append(ast.UnaryOp(ast.Not(), node.test))
        if refuses(node.body):
            # Code beside a refusal is for that backend on purpose, not by oversight.
            false = false.declared(node)
        after_false = self.block(node.orelse, facts.both(false))
        context.branches.pop()
        if after_true is None:
            return after_false
        return after_true if after_false is None else after_true.either(after_false)

    def _on_While(self, node: ast.While, facts: Facts) -> Facts:  # noqa: N802
        true, _ = self.conditions.of(node.test, self.context.scope)
        self._test(node.test, facts)
        self.block(node.body, facts.both(true))
        self.block(node.orelse, facts)
        return facts

    def _on_For(self, node: ast.For | ast.AsyncFor, facts: Facts) -> Facts:  # noqa: N802
        self._show("for", node)
        self.expression(node.iter, facts)
        inner = facts.both(self.conditions.filled(node.iter, self.context.scope))
        inner = inner.both(self._counted(node.iter))
        self.block(node.body, inner)
        self.block(node.orelse, facts)
        return facts

    _on_AsyncFor = _on_For  # noqa: N815

    def _on_With(self, node: ast.With | ast.AsyncWith, facts: Facts) -> Facts | None:  # noqa: N802
        inner = facts
        for item in node.items:
            self.expression(item.context_expr, facts)
            call = item.context_expr
            if isinstance(call, ast.Call):
                name = getattr(call.func, "attr", getattr(call.func, "id", ""))
                if name in ("suppress", "raises", "assertRaises", "assertRaisesRegex"):
                    inner = inner.knowing("try", ANY)
        after = self.block(node.body, inner)
        return facts if inner is not facts or after is None else after

    _on_AsyncWith = _on_With  # noqa: N815

    def _on_Try(self, node: ast.Try, facts: Facts) -> Facts | None:  # noqa: N802
        inner = facts
        for handler in node.handlers:
            if expects(self.context, handler, node.body):
                inner = facts.knowing("try", ANY, node=handler)
        after = self.block(node.body, inner)
        self.block(node.orelse, facts)
        for handler in node.handlers:
            old = is_for_older(self.context, handler) or is_of_cuda(self.context, handler)
            self.block(handler.body, facts.knowing("name", "cuda", node=handler) if old else facts)
        self.block(node.finalbody, facts)
        return facts if after is not None or node.handlers else None

    _on_TryStar = _on_Try  # noqa: N815

    def _on_Match(self, node: ast.Match, facts: Facts) -> Facts | None:  # noqa: N802
        self.expression(node.subject, facts)
        rest = facts
        afters: list[Facts] = []
        for case in node.cases:
            devices = pattern_devices(case.pattern)
            inner = rest
            if devices:
                inner = rest.both(known("test", *devices, node=case.pattern))
                if case.guard is None:
                    rest = rest.without(*devices)
            elif pattern_truth(case.pattern) is not None:
                true, false = self.conditions.of(node.subject, self.context.scope)
                inner = rest.both(true if pattern_truth(case.pattern) else false)
            if case.guard is not None:
                self._test(case.guard, inner)
                inner = inner.both(self.conditions.of(case.guard, self.context.scope)[0])
            after = self.block(case.body, inner)
            if after is not None:
                afters.append(after)
        result = rest
        for after in afters:
            result = result.either(after)
        return result

    # Definitions

    def _on_FunctionDef(self, node: ast.FunctionDef, facts: Facts) -> Facts:  # noqa: N802
        context = self.context
        self._show("function", node)
        self._decorator_expressions(node.decorator_list, facts)
        self.placements.parameters(node.args)
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.expression(default, facts)
        outer = context.scope, context.branches
        context.scope = self.resolver.scopes.of.get(id(node), context.scope)
        context.branches = []
        inner = facts.both(decorators_say(context, node.decorator_list)).both(declared(node.name))
        inner = inner.both(fixtures_say(context, node)).both(wraps_for_cards(node))
        self.block(node.body, inner.both(refused(context, node.body)))
        context.scope, context.branches = outer
        return facts

    _on_AsyncFunctionDef = _on_FunctionDef  # noqa: N815

    def _on_ClassDef(self, node: ast.ClassDef, facts: Facts) -> Facts:  # noqa: N802
        context = self.context
        self._show("class", node)
        self._decorator_expressions(node.decorator_list, facts)
        for keyword in node.keywords:
            self.expression(keyword.value, facts)
        outer = context.scope
        context.scope = self.resolver.scopes.of.get(id(node), outer)
        inner = facts.both(decorators_say(context, node.decorator_list))
        if not any(spelled(base).endswith("Callback") for base in node.bases):
            # A callback runs wherever it is registered, whatever it is called.
            inner = inner.both(declared(node.name))
        for base in node.bases:
            dotted = context.dotted(base) or ""
            inner = inner.both(declared(dotted.rpartition(".")[2]))
            if dotted in _CONTAINED or wraps_engine(dotted):
                inner = inner.knowing("name", "cuda", node=node)
        self.block(node.body, inner.both(set_up(context, node)))
        context.scope = outer
        return facts

    def _decorator_expressions(self, decorators: list[ast.expr], facts: Facts) -> None:
        outer = self.context.decorating
        self.context.decorating = True
        for decorator in decorators:
            self.expression(decorator, facts)
        self.context.decorating = outer


#: Base classes of what runs in a container that asks for NVIDIA's cards.
_CONTAINED = frozenset({"cog.BasePredictor", "cog.Predictor", "BasePredictor"})
#: Functions of the class, not of a walker: those would keep it, and its tree, alive.
_HANDLERS: dict[type[ast.AST], Callable[[Walker, Any, Facts], Facts | None]] = {
    kind: getattr(Walker, "_on_" + kind.__name__)
    for kind in ast.stmt.__subclasses__()
    if hasattr(Walker, "_on_" + kind.__name__)
}
