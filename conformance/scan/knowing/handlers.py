"""What a ``try`` expects: the failure of a missing backend, or an older PyTorch."""

from __future__ import annotations

import ast

from conformance.scan.knowing.markers import exits
from conformance.scan.knowing.point import Point
from conformance.scan.knowing.signatures import spelled

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


#: Fewer statements and lines than this are tried for one answer; around more a handler only goes on.
_TRIAL, _LONG = 4, 12


def expects(point: Point, handler: ast.ExceptHandler, tried: list[ast.stmt]) -> bool:
    """Whether a handler takes the failure of what is tried for an answer: it does not raise again,
    end the program, only show what went wrong, or print it and go on with the next item."""
    last = handler.body[-1]
    if isinstance(last, ast.Raise):
        return False
    if isinstance(last, ast.Expr) and exits(point, last.value):
        return False
    shown = [_shows_trace(point, statement) for statement in handler.body]
    printed = [_prints(statement) for statement in handler.body]
    if any(shown) and all(map(any, zip(shown, printed, strict=True))):
        return False
    long = len(tried) >= _TRIAL or handler.lineno - tried[0].lineno > _LONG
    if long and all(printed):
        return False
    if handler.type is None:
        return True
    names = _caught(point, handler)
    return bool(names & _EXPECTED) or any("cuda" in name.lower() for name in names)


def _shows_trace(point: Point, statement: ast.stmt) -> bool:
    """``traceback.print_exc()``, ``log.exception("...")``."""
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    function = statement.value.func
    if isinstance(function, ast.Attribute) and function.attr == "exception":
        return True
    return (point.dotted(function) or "").startswith("traceback.print")


def _prints(statement: ast.stmt) -> bool:
    """``print(error)``, ``log.error(error)``, ``continue``."""
    if isinstance(statement, ast.Continue):
        return True
    call = statement.value if isinstance(statement, ast.Expr) else None
    name = spelled(call.func) if isinstance(call, ast.Call) else ""
    return name == "print" or name.rpartition(".")[2] in ("error", "warning", "warn", "info")


def is_of_cuda(point: Point, handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes what CUDA alone raises (``torch.cuda.OutOfMemoryError``), by its
    type or by its words: ``if "CUDA out of memory" not in str(error): raise``."""
    kind = handler.type
    if kind is None:
        return False
    return (point.dotted(kind) or "").startswith("torch.cuda.") or _is_narrowed(handler.body[0])


def _is_narrowed(statement: ast.stmt) -> bool:
    match statement:
        case ast.If(
            test=ast.Compare(left=ast.Constant(value=str(text)), ops=[ast.NotIn()]),
            body=[*_, ast.Raise()],
            orelse=[],
        ):
            return "CUDA" in text
        case _:
            return False


def is_for_older(point: Point, handler: ast.ExceptHandler) -> bool:
    """Whether a handler is where an older PyTorch goes on."""
    return handler.type is not None and _caught(point, handler) <= _OLD


def _caught(point: Point, handler: ast.ExceptHandler) -> set[str]:
    """Names of the exceptions that a handler catches."""
    kind = handler.type
    types = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return {(point.dotted(item) or "").rpartition(".")[2] for item in types}
