"""Replacement texts that several rules' fixes share."""

from __future__ import annotations

import ast

from conformance.scan.findings import Edit, Fix
from conformance.scan.judging.context import Context


def device_text(context: Context, *, as_text: bool) -> str | None:
    """An expression for "the device to use", as a device or as its type's name.

    The device in hand where the function has one, else the accelerator that is there, else the
    CPU. None when the file has no name for torch.
    """
    held = context.device_expression()
    torch = context.torch_name()
    if held == "device":
        return held
    if held is not None:
        return f"{held}.type" if as_text else held
    if torch is None:
        return None
    found = (
        f'({torch}.accelerator.current_accelerator(check_available=True) or {torch}.device("cpu"))'
    )
    return f"{found}.type" if as_text else found


def replace_device(context: Context, node: ast.expr, *, as_text: bool = False) -> Fix | None:
    """Unsafe fix: the device in hand instead of a literal."""
    text = device_text(context, as_text=as_text)
    return None if text is None else Fix((context.replace(node, text),))


def rename_call(context: Context, call: ast.Call, path: str, *, safe: bool = False) -> Fix | None:
    """Fix that calls ``torch.<path>`` with the same arguments."""
    torch = context.torch_name()
    if torch is None:
        return None
    return Fix((context.replace(call.func, f"{torch}.{path}"),), safe)


def alone_on_its_line(context: Context, node: ast.expr) -> str | None:
    """Indentation of a statement that is only this expression on one line of its own."""
    statement = context.statement
    if not isinstance(statement, ast.Expr) or statement.value is not node:
        return None
    if node.lineno != node.end_lineno:
        return None
    line = context.source.lines[node.lineno - 1]
    start = context.source.column(node.lineno, node.col_offset)
    end = context.source.column(node.lineno, node.end_col_offset or 0)
    rest = line[end:].strip()
    if line[:start].strip() or (rest and not rest.startswith("#")):
        return None
    return line[:start]


def guard_statement(context: Context, call: ast.Call, path: str) -> Fix | None:
    """Safe fix: the statement becomes ``torch.<path>(...)`` for whichever accelerator is there.

    Unlike CUDA's own functions, those of ``torch.accelerator`` raise on a machine without any,
    so the call gets its own test.
    """
    indent = alone_on_its_line(context, call)
    torch = context.torch_name()
    if indent is None or torch is None or call.args or call.keywords:
        return None
    step = "\t" if indent.startswith("\t") else "    "
    end = "\r\n" if "\r\n" in context.source.text else "\n"
    text = f"if {torch}.accelerator.is_available():{end}{indent}{step}{torch}.{path}()"
    return Fix((context.replace(call, text),), safe=True)


def insert_after(context: Context, node: ast.expr, text: str) -> Edit:
    """The edit that puts a text right behind a node."""
    end = context.span(node)[1]
    return Edit(end, end, text)
