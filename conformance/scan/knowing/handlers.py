"""What a ``try`` expects: the failure of a missing backend, or an older PyTorch."""

from __future__ import annotations

import ast

from conformance.scan.judging.context import Context

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


def expects(context: Context, handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes the failure for an answer (it does not only raise again)."""
    if len(handler.body) == 1 and isinstance(handler.body[0], ast.Raise):
        return False
    if handler.type is None:
        return True
    names = _caught(context, handler)
    return bool(names & _EXPECTED) or any("cuda" in name.lower() for name in names)


def is_for_older(context: Context, handler: ast.ExceptHandler) -> bool:
    """Whether a handler is where an older PyTorch goes on."""
    return handler.type is not None and _caught(context, handler) <= _OLD


def _caught(context: Context, handler: ast.ExceptHandler) -> set[str]:
    """Names of the exceptions that a handler catches."""
    kind = handler.type
    types = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return {(context.dotted(item) or "").rpartition(".")[2] for item in types}
