"""Private helpers that are only called where CUDA is known: what they do is guarded there."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from conformance.scan.context import Context
from conformance.scan.findings import Finding, Severity

#: A call: whether CUDA is known there, and the functions and classes that it stands in.
Call = tuple[bool, tuple[str, ...]]
Record = Callable[[Context, ast.Call], None]
_WORD = re.compile(r"\b(_[^\W_]\w*)(\(?)")


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
