"""What a function answers, as one expression: a test written in guard clauses is one as well."""

from __future__ import annotations

import ast

from conformance.scan.knowing.scopes import FunctionNode

#: Statements that end no function and answer nothing.
_SILENT = (
    ast.Expr,
    ast.Assert,
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Import,
    ast.ImportFrom,
    ast.Global,
    ast.Pass,
    ast.Raise,
)
#: More guard clauses than this are not read.
_CLAUSES = 12


def answer_of(function: FunctionNode) -> ast.expr | None:
    """What a function returns: the value of its only ``return``, or its guard clauses joined.

    ``if a: return False`` and then ``return b`` answer ``not a and b``. None where a loop, a
    ``try`` or anything else between decides.
    """
    values = [s.value for s in function.body if isinstance(s, ast.Return) and s.value is not None]
    joined = _joined(function.body, 0)
    if joined is not None and any(isinstance(s, ast.If) for s in function.body):
        return joined
    return values[0] if len(values) == 1 else None


def _joined(body: list[ast.stmt], depth: int) -> ast.expr | None:
    """The answer of a block that returns on every way through it, None if it does not."""
    for index, statement in enumerate(body):
        match statement:
            case ast.Return(value=ast.expr() as value):
                return value
            case ast.If(test=test, body=inner, orelse=orelse) if depth < _CLAUSES:
                if _is_silent(statement):
                    continue
                first = _joined(inner, depth + 1)
                second = _joined([*orelse, *body[index + 1 :]], depth + 1)
                return None if first is None or second is None else _choice(test, first, second)
            case _ if not isinstance(statement, _SILENT):
                return None
    return None


def _is_silent(statement: ast.stmt) -> bool:
    """Whether nothing is returned in a statement, and nothing decides that is not read."""
    if isinstance(statement, ast.If):
        return all(_is_silent(inner) for inner in (*statement.body, *statement.orelse))
    return isinstance(statement, _SILENT)


def _choice(test: ast.expr, first: ast.expr, second: ast.expr) -> ast.expr:
    """``first if test else second``, as a conjunction or a disjunction where one is a constant."""
    made: ast.expr
    if isinstance(first, ast.Constant):
        if first.value:
            made = ast.BoolOp(ast.Or(), [test, second])
            done = isinstance(second, ast.Constant) and not second.value
            return test if done else ast.copy_location(made, test)
        refused = ast.copy_location(ast.UnaryOp(ast.Not(), test), test)
        made = ast.BoolOp(ast.And(), [refused, second])
        done = isinstance(second, ast.Constant) and bool(second.value)
        return refused if done else ast.copy_location(made, test)
    return ast.copy_location(ast.IfExp(test, first, second), test)
