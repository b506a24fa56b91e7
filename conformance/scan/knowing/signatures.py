"""Parameters of functions and classes, and which of them an argument of a call is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from conformance.scan.knowing.scopes import FunctionNode


@dataclass(frozen=True, slots=True)
class Parameter:
    """One that a caller may give: its place (-1: by keyword only) and its default."""

    name: str
    place: int
    default: ast.expr | None


def parameters_of(definition: ast.AST) -> tuple[list[Parameter], ast.AST]:
    """What a call may give, and the function that takes it (of a class, its ``__init__``; the
    class itself where its fields are the parameters)."""
    if isinstance(definition, FunctionNode):
        return list(_given(definition.args, 0)), definition
    body = getattr(definition, "body", [])
    for statement in body:
        if isinstance(statement, FunctionNode) and statement.name == "__init__":
            return list(_given(statement.args, 1)), statement
    fields = [s for s in body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
    names = [s.target.id for s in fields if isinstance(s.target, ast.Name)]
    return [
        Parameter(name, place, field.value)
        for place, (name, field) in enumerate(zip(names, fields, strict=True))
    ], definition


def _given(arguments: ast.arguments, bound: int) -> Iterator[Parameter]:
    every = [*arguments.posonlyargs, *arguments.args]
    missing = len(every) - len(arguments.defaults)
    for index, argument in enumerate(every):
        if index >= bound:
            default = arguments.defaults[index - missing] if index >= missing else None
            yield Parameter(argument.arg, index - bound, default)
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield Parameter(argument.arg, -1, value)


def spelled(node: ast.expr) -> str:
    """A chain of names as it is written (``pkg.mod.f``), empty for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = spelled(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""
