"""The nodes of a piece of syntax, breadth first: ``ast.walk`` in a third of its time."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from conformance.scan.reading.lines import HotLines


def parts_of(top: ast.AST) -> list[ast.AST]:
    """A node and all below it, in the order of ``ast.walk``."""
    found = [top]
    for node in found:  # it grows meanwhile
        for child in node.__dict__.values():
            kind = type(child)
            if kind is list:
                found += [item for item in child if isinstance(item, ast.AST)]
            elif kind is not int and kind is not str and isinstance(child, ast.AST):
                found.append(child)
    return found


def parts_on(top: ast.AST, lines: HotLines) -> Iterator[ast.AST]:
    """The nodes of a piece of syntax that stand on some lines, or hold such."""
    waiting = [top]
    while waiting:
        node = waiting.pop()
        first = getattr(node, "lineno", None)
        decorated = getattr(node, "decorator_list", ())  # those stand above the first line
        if first is not None and not decorated and not lines.any(first, node.end_lineno or first):  # type: ignore[attr-defined]
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))
