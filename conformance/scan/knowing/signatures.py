"""Parameters of functions and classes, and which of them an argument of a call is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from conformance.scan.knowing.scopes import FunctionNode

#: Decorators that leave a function to be called as it is; any other may hand it on.
_HARMLESS = frozenset(
    {"no_grad", "inference_mode", "lru_cache", "cache", "contextmanager", "wraps", "dataclass"}
    | {"staticmethod", "classmethod", "property", "enable_grad", "overload", "total_ordering"}
    | {"s", "attrs", "define", "frozen"}
)
#: Classes that call none of the methods that are added to them.
_BASES = frozenset({"object", "ABC", "Generic", "Protocol", "Module", "NamedTuple"})
#: What PyTorch's ``Module`` calls by itself.
_OF_MODULES = frozenset(
    {"forward", "extra_repr", "state_dict", "load_state_dict", "train", "eval", "parameters"}
    | {"to", "cuda", "cpu", "half", "float", "double", "apply", "modules", "children", "buffers"}
)


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


def is_plain(node: ast.AST) -> bool:
    """Whether no decorator may hand a function or class to others."""
    for decorator in getattr(node, "decorator_list", ()):
        function = decorator.func if isinstance(decorator, ast.Call) else decorator
        if spelled(function).rpartition(".")[2] not in _HARMLESS:
            return False
    return True


def is_bound(node: ast.AST) -> bool:
    """Whether the first parameter of a method is what it is called on."""
    return isinstance(node, FunctionNode) and not any(
        spelled(decorator) == "staticmethod" for decorator in node.decorator_list
    )


def is_called_by_name(owner: ast.ClassDef, method: ast.AST) -> bool:
    """Whether a method runs only where its name stands: no framework calls it back."""
    name = getattr(method, "name", "__")
    bases = {
        spelled(base.value if isinstance(base, ast.Subscript) else base).rpartition(".")[2]
        for base in owner.bases
    }
    if name.startswith("__") or not (is_plain(owner) and is_plain(method)):
        return False
    return bases <= _BASES and not ("Module" in bases and name in _OF_MODULES)
