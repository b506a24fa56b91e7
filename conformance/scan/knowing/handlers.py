"""What a ``try`` expects: the failure of a missing backend, or an older PyTorch."""

from __future__ import annotations

import ast

from conformance.scan.knowing.point import Point

#: What an older PyTorch raises for a function that it lacks; it has nothing but CUDA.
_OLD = frozenset({"AttributeError", "TypeError"})
_EXPECTED = frozenset(
    {
        "BaseException",
        "Exception",
        "RuntimeError",
        "AssertionError",
        "AttributeError",
        "NotImplementedError",
        "ImportError",
        "ModuleNotFoundError",
        "OSError",
    }
)


def expects(point: Point, handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes the failure for an answer (it does not only raise again)."""
    if len(handler.body) == 1 and isinstance(handler.body[0], ast.Raise):
        return False
    if handler.type is None:
        return True
    names = _caught(point, handler)
    return bool(names & _EXPECTED) or any("cuda" in name.lower() for name in names)


def is_for_older(point: Point, handler: ast.ExceptHandler) -> bool:
    """Whether a handler is where an older PyTorch goes on."""
    return handler.type is not None and _caught(point, handler) <= _OLD


def _caught(point: Point, handler: ast.ExceptHandler) -> set[str]:
    """Names of the exceptions that a handler catches."""
    kind = handler.type
    types = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return {(point.dotted(item) or "").rpartition(".")[2] for item in types}
