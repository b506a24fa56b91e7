"""Code that is only reached with CUDA: helpers called where it is known, packages of kernels."""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache

from conformance.scan.context import Context
from conformance.scan.findings import Finding, Severity
from conformance.scan.packages import KERNELS

#: A call: whether CUDA is known there, and the functions and classes that it stands in.
Call = tuple[bool, tuple[str, ...]]
Record = Callable[[Context, ast.Call], None]
_WORD = re.compile(r"\b(_[^\W_]\w*)(\(?)")
_KERNELS = re.compile(rf"(?m)^(?:from|import)[ \t]+(?:{'|'.join(sorted(KERNELS))})\b")
_RELATIVE = re.compile(r"(?m)^from \.(\w*) import (\w+)")


def in_kernel_package(path: str) -> bool:
    """Whether a file cannot be imported before a language of kernels for CUDA was.

    So it is where the ``__init__`` of a package around it imports one, or a module that imports
    one; those two files themselves are not meant.
    """
    folder, name = os.path.split(path)
    package = _kernel_package(folder)
    return package is not None and (package[0] != folder or name not in package[1])


@lru_cache(maxsize=1024)
def _kernel_package(folder: str) -> tuple[str, frozenset[str]] | None:
    """The package that holds a folder and imports such a language, and the files that do it."""
    text = _text(os.path.join(folder, "__init__.py"))
    if text is None:
        return None
    if _KERNELS.search(text):
        return folder, frozenset({"__init__.py"})
    for module, first in _RELATIVE.findall(text):
        name = f"{module or first}.py"
        if _KERNELS.search(_text(os.path.join(folder, name)) or ""):
            return folder, frozenset({"__init__.py", name})
    parent = os.path.dirname(folder)
    return _kernel_package(parent) if parent != folder else None


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return None


class Helpers:
    """The private functions of one file that findings lie in, and where they are called.

    A helper counts as guarded when every mention of it in the file is a call where CUDA is known:
    one that is handed on, or called from a place that was not looked at, may be reached from
    anywhere.
    """

    def __init__(self, findings: Iterable[Finding], text: str) -> None:
        inside = {
            part
            for finding in findings
            if finding.severity > Severity.NOTE
            for part in finding.scope.split(".")
            if part.startswith("_") and not part.startswith("__")
        }
        self._mentions: Counter[str] = Counter()
        self.names: set[str] = set()
        self.calls: dict[str, list[Call]] = {}
        if inside:
            called: Counter[str] = Counter()
            for name, bracket in _WORD.findall(text):
                self._mentions[name] += 1
                called[name] += bool(bracket)
            self._only_called = {
                name for name, count in called.items() if 1 < count == self._mentions[name]
            }
            self.names = inside & self._only_called

    def recorder(self) -> Record:
        """A hook that writes down where the helpers are called, from the beginning."""
        self.calls = {}

        def record(context: Context, node: ast.Call) -> None:
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name in self.names:
                known = "cuda" in context.facts.known
                owners = tuple(context.scope.qualname.split("."))
                self.calls.setdefault(name, []).append((known, owners))

        return record

    def widen(self) -> bool:
        """Take in the helpers that call helpers without a guard; False when there are no more."""
        callers = {
            owner
            for seen in self.calls.values()
            for known, owners in seen
            if not known
            for owner in owners
        }
        new = (callers & self._only_called) - self.names
        self.names |= new
        return bool(new)

    def milder(self, findings: list[Finding]) -> list[Finding]:
        """Findings with those inside of guarded helpers turned into notes."""
        whole = {
            name: seen for name, seen in self.calls.items() if self._mentions[name] == len(seen) + 1
        }
        guarded: set[str] = set()
        grown = True
        while grown:
            new = {
                name
                for name, seen in whole.items()
                if all(known or not guarded.isdisjoint(owners) for known, owners in seen)
            }
            grown = new != guarded
            guarded = new
        return [
            finding
            if finding.severity == Severity.NOTE or guarded.isdisjoint(finding.scope.split("."))
            else replace(finding, severity=Severity.NOTE)
            for finding in findings
        ]
