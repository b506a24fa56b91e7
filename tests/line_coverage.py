"""Which lines of `acestep` and `conformance` the tests run, at a small part of what tracing costs.

On Python 3.11 a tracer slows all Python down by half, PyTorch's and the tests' own with it. Here
each statement of the two packages marks its line when it runs, being compiled so as it is imported;
nothing else is slower. The lines go to coverage.py's data file, for coverage.py knows what a
statement is, what is excused, and how to report:

    python -m pytest -p tests.line_coverage -n auto tests
    coverage combine && coverage report

Processes that tests start are not measured.
"""

from __future__ import annotations

import ast
import builtins
import os
import zlib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from _pytest.assertion import rewrite
from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = tuple(f"{ROOT / name}{os.sep}" for name in ("acestep", "conformance"))
marked: dict[str, bytearray] = {}


def begin(path: str) -> None:
    """Give the statements of a file what they set: a byte for each line, counted from one.

    It is a builtin, since the suite runs functions' code with other modules' globals.
    """
    lines = bytearray(Path(path).read_bytes().count(b"\n") + 2)
    setattr(builtins, _name(path), marked.setdefault(path, lines))


def _name(text: str) -> str:
    return f"__lines_{zlib.crc32(text.encode()):08x}__"


def instrument(tree: ast.Module, path: str) -> None:
    """Let each statement of a module, but for docstrings, mark its line before it runs."""
    name = _name(path)
    for node in list(ast.walk(tree)):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, _marking(node, statements, name))
    start = _start(tree, tree.body)
    first = f"__import__({__name__!r}, fromlist=['']).begin({path!r})"
    tree.body[start:start] = ast.parse(first).body


def _marking(node: ast.AST, statements: list[ast.stmt], name: str) -> list[ast.stmt]:
    start = _start(node, statements)
    found = statements[:start]
    lines: set[int] = {one.lineno for one in found if isinstance(one, ast.ImportFrom)}
    if isinstance(node, ast.ExceptHandler):
        lines = {node.lineno}
    elif isinstance(node, ast.match_case):
        lines = {node.pattern.lineno}
    found += [_mark(name, line) for line in sorted(lines)]
    for statement in statements[start:]:
        lines = {
            statement.lineno,
            *(one.lineno for one in getattr(statement, "decorator_list", ())),
        }
        found += [*(_mark(name, line) for line in sorted(lines)), statement]
    return found


def _start(node: ast.AST, statements: list[ast.stmt]) -> int:
    """Where the first statement stands before which another may be put."""
    start = 0
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        start = int(ast.get_docstring(node, clean=False) is not None)
    while isinstance(node, ast.Module) and start < len(statements):
        statement = statements[start]
        if not isinstance(statement, ast.ImportFrom) or statement.module != "__future__":
            break
        start += 1
    return start


def _mark(name: str, line: int) -> ast.stmt:
    place: dict[str, Any] = {
        "lineno": line,
        "end_lineno": line,
        "col_offset": 0,
        "end_col_offset": 0,
    }
    target = ast.Subscript(
        ast.Name(name, ast.Load(), **place), ast.Constant(line, **place), ast.Store(), **place
    )
    return ast.Assign([target], ast.Constant(1, **place), **place)


def _compiled(loader: SourceFileLoader, fullname: str) -> CodeType | None:
    path = loader.get_filename(fullname)
    if not path.startswith(PACKAGES):
        return _unmeasured(loader, fullname)
    tree = ast.parse(loader.get_data(path), path)
    instrument(tree, path)
    return compile(tree, path, "exec", dont_inherit=True)


def _rewritten(
    tree: ast.Module, source: bytes, path: str | None = None, config: Any = None
) -> None:
    if path is not None and path.startswith(PACKAGES):
        instrument(tree, path)
    _unmeasured_rewriting(tree, source, path, config)


_unmeasured = SourceFileLoader.get_code
_unmeasured_rewriting = rewrite.rewrite_asserts


def pytest_addoption() -> None:
    """Begin, before any other plugin is imported: this hook is called as soon as it is known."""
    SourceFileLoader.get_code = _compiled  # type: ignore[method-assign, assignment]
    # Files in which pytest rewrites `assert` are compiled by pytest, and kept: under a name of their
    # own, for without this module, or with another version of it, they do not run.
    rewrite.rewrite_asserts = _rewritten
    version = _name(Path(__file__).read_text(encoding="utf-8"))
    rewrite.PYC_TAIL = f"-{version}{rewrite.PYC_TAIL}"


def pytest_configure(config: pytest.Config) -> None:
    """Keep what asked for this module from the processes that tests start."""
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        os.environ.pop("PYTEST_ADDOPTS", None)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Store what ran in this process; a file that nothing imported counts as not run."""
    data = CoverageData(str(ROOT / ".coverage"), suffix=True)
    data.add_lines(
        {path: [n for n, mark in enumerate(set_) if mark] for path, set_ in marked.items()}
    )
    data.touch_files([str(path) for package in PACKAGES for path in Path(package).rglob("*.py")])
    data.write()
