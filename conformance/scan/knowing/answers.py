"""What a function answers, as one expression: a test written in guard clauses is one as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator

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
#: Stands for what a loop or a ``try`` decides: a name that nothing binds.
_UNREAD = "_unread_"
#: More guard clauses than this are not read.
_CLAUSES = 12


def answer_of(function: FunctionNode) -> ast.expr | None:
    """What a function returns: the value of its only ``return``, or its guard clauses joined.

    ``if a: return False`` and then ``return b`` answer ``not a and b``. None where a loop, a
    ``try`` or anything else between decides, unless all that it answers is no.
    """
    joined = _joined(function.body, 0)
    if joined is not None and any(isinstance(s, ast.If) for s in function.body):
        return joined
    answers = [value for statement in function.body for value in _answers(statement)]
    return answers[0] if len(answers) == 1 else None


def _answers(node: ast.AST) -> Iterator[ast.expr | None]:
    """What is returned in a statement, not in the functions that it defines."""
    if isinstance(node, ast.Return):
        yield node.value
    elif not isinstance(node, FunctionNode | ast.Lambda | ast.ClassDef):
        for child in ast.iter_child_nodes(node):
            yield from _answers(child)


def _refuses(statement: ast.stmt) -> bool:
    """Whether a statement answers nothing but no."""
    answers = list(_answers(statement))
    return all(answer is None or _is_false(answer) for answer in answers)


def _is_false(answer: ast.expr) -> bool:
    return isinstance(answer, ast.Constant) and not answer.value


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
                rest = _joined(body[index + 1 :], depth) if _refuses(statement) else None
                if rest is None:
                    return None
                unread = ast.copy_location(ast.Name(_UNREAD, ast.Load()), statement)
                return ast.copy_location(ast.BoolOp(ast.And(), [unread, rest]), statement)
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
