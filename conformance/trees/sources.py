"""Reads the sources of a tree: where a name is defined, and which functions do a thing."""

from __future__ import annotations

import ast
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from conformance.tree import Tree

Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Found:
    """A function or class in the sources of a tree.

    Attributes:
        module: its module's name below `acestep`.
        name: its qualified name there.
        place: `file:line`, relative to the tree's root.
        node: its syntax.
    """

    module: str
    name: str
    place: str
    node: Node

    @property
    def row(self) -> str:
        """`module:name`, as entry points are written."""
        return f"{self.module}:{self.name}"


def definitions(tree: Tree, *words: str) -> Iterator[Found]:
    """Every function and class in the files that hold one of these words.

    Only such files are parsed: a tree may have more than a hundred thousand lines.
    """
    for file in tree.files():
        text = _text(file)
        if text is None or not any(word in text for word in words):
            continue
        yield from _defined_in(tree.root, file)


def find(tree: Tree, does: Callable[[Node], bool], *words: str) -> list[Found]:
    """The functions and classes in files with one of these words that `does` says yes to."""
    return [found for found in definitions(tree, *words) if does(found.node)]


def calls(node: ast.AST, name: str) -> Iterator[ast.Call]:
    """The calls of a function or method of this name below a node."""
    for part in ast.walk(node):
        if isinstance(part, ast.Call):
            called = part.func
            found = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if found == name:
                yield part


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The value a call gives to an argument of this name."""
    return next((k.value for k in call.keywords if k.arg == name), None)


def texts(node: ast.AST | None) -> set[str]:
    """The texts that a literal list, tuple or set consists of."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else []
    return {p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)}


def call_at(file: Path, line: int, name: str) -> ast.Call | None:
    """The innermost call of this name that spans a line of a file."""
    syntax = _parsed(file)
    found = [
        call
        for call in (calls(syntax, name) if syntax else ())
        if call.lineno <= line <= (call.end_lineno or call.lineno)
    ]
    return max(found, key=lambda call: call.lineno, default=None)


def decided_at(file: Path, value: ast.expr) -> int:
    """The line that decides a value: of a name, its last assignment before."""
    if not isinstance(value, ast.Name):
        return value.lineno
    syntax = _parsed(file)
    lines = [
        node.lineno
        for node in (ast.walk(syntax) if syntax else ())
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and node.lineno <= value.lineno
        and any(
            getattr(target, "id", "") == value.id
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        )
    ]
    return max(lines, default=value.lineno)


@functools.cache
def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


@functools.cache
def _parsed(file: Path) -> ast.Module | None:
    with warnings.catch_warnings():
        # Odd escapes in another project's texts.
        warnings.simplefilter("ignore")
        try:
            return ast.parse(_text(file) or "")
        except SyntaxError:
            return None


def _defined_in(root: Path, file: Path) -> Iterator[Found]:
    shown = file.relative_to(root)
    parts = shown.with_suffix("").parts[1:]
    module = ".".join(parts[:-1] if parts and parts[-1] == "__init__" else parts)

    def walk(node: ast.AST, above: tuple[str, ...]) -> Iterator[Found]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Node):
                name = (*above, child.name)
                yield Found(module, ".".join(name), f"{shown.as_posix()}:{child.lineno}", child)
                yield from walk(child, name)
            elif not isinstance(child, ast.expr):
                yield from walk(child, above)

    syntax = _parsed(file)
    if syntax is not None:
        yield from walk(syntax, ())
