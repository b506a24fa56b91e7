"""What the names of a module say about a device to those who import them."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from conformance.scan.knowing.answers import answer_of
from conformance.scan.knowing.conditions import Conditions
from conformance.scan.knowing.foreign import FUNCTION
from conformance.scan.knowing.resolve import Resolver
from conformance.scan.knowing.scopes import Bound, FunctionNode, Scope

_LONGEST = 400
_DEPTH = 4


def offers_of(resolver: Resolver, conditions: Conditions) -> dict[str, str]:
    """Module-level names that stand for a device or for a test of it, with what they stand for.

    The text is that of :class:`Foreign`'s values, in full words: aliases of this module are undone.
    """
    module = resolver.scopes.module
    offered: dict[str, str] = {}
    for name, bounds in module.names.items():
        if "." in name or any(bound.kind not in ("value", "def") for bound in bounds):
            continue
        texts = _texts(bounds, resolver, conditions)
        if texts and all(len(text) < _LONGEST and "\n" not in text for text in texts):
            offered[name] = "\n".join(texts)
    return offered


def _texts(bounds: Iterable[Bound], resolver: Resolver, conditions: Conditions) -> list[str]:
    values: list[tuple[str, ast.expr, Scope]] = []
    teaches = False
    for bound in bounds:
        scope, value, mark = resolver.scopes.module, bound.value, ""
        if isinstance(bound.node, FunctionNode):
            answer = answer_of(bound.node)
            inner = resolver.scopes.of.get(id(bound.node))
            if answer is None or inner is None:
                return []
            scope, value, mark = inner, answer, FUNCTION
        if value is None:
            return []
        value = resolver.scopes.flag_tests.get(id(value), value)
        values.append((mark, value, scope))
        made = bool(mark) and resolver.definition(value, scope) is not None
        if not isinstance(value, ast.Constant) and not made:  # a function is no answer
            pair = conditions.of(value, scope)
            teaches = teaches or any(side.known or side.excluded for side in pair)
        teaches = teaches or (not mark and resolver.device_set(value, scope) is not None)
    if not teaches:
        return []
    try:
        return [mark + ast.unparse(_Plain(resolver).of(value, s)) for mark, value, s in values]
    except ValueError:
        # Longer than any test; or an f-string that this Python cannot write out again.
        return []


class _Plain:
    """Expressions with the module's own names undone, as far as they can be."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._parts = 0

    def of(self, node: ast.expr, scope: Scope, depth: int = 0) -> ast.expr:
        """The expression, or a copy. Raises ValueError for more parts than a text may have."""
        self._parts += 1
        if self._parts > _LONGEST:
            # Names that stand for sums of names would grow with each undoing.
            raise ValueError("longer than the longest text that is offered")
        resolver = self._resolver
        if isinstance(node, ast.Name | ast.Attribute):
            dotted = resolver.dotted(node, scope)
            if dotted is not None and not dotted.startswith("."):
                return ast.parse(dotted, mode="eval").body if dotted.isascii() else node
            held = resolver.only_value(node, scope)
            if held is not None and depth < _DEPTH:
                return self.of(held[0], held[1], depth + 1)
            return node
        if isinstance(node, ast.Call) and not node.args and not node.keywords and depth < _DEPTH:
            definition = resolver.definition(node.func, scope)
            if isinstance(definition, FunctionNode):
                answer = answer_of(definition)
                inner = resolver.scopes.of.get(id(definition))
                if answer is not None and inner is not None:
                    return self.of(answer, inner, depth + 1)
        return _Inner(self, scope, depth).visit(node)  # type: ignore[no-any-return]


class _Inner(ast.NodeTransformer):
    """The parts of an expression, on a copy: the tree of the file stays as it is."""

    def __init__(self, plain: _Plain, scope: Scope, depth: int) -> None:
        self._plain = plain
        self._how = scope, depth

    def generic_visit(self, node: ast.AST) -> ast.AST:
        fields: dict[str, object] = {}
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                fields[name] = [self._part(item) for item in value]
            else:
                fields[name] = self._part(value)
        return ast.copy_location(type(node)(**fields), node)

    def _part(self, value: object) -> object:
        if isinstance(value, ast.Name | ast.Attribute | ast.Call):
            return self._plain.of(value, *self._how)
        return self.generic_visit(value) if isinstance(value, ast.AST) else value
