"""Private helpers that are only called where CUDA is known: what they do is guarded there."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from conformance.scan.context import Context
from conformance.scan.findings import Finding, Severity

#: A call: whether CUDA is known there, and the functions and classes that it stands in.
Call = tuple[bool, tuple[str, ...]]
_PRIVATE = re.compile(r"\bdef (_[^\W_]\w*)")


def private_helpers(findings: Iterable[Finding], text: str) -> set[str]:
    """Names of a file's private functions, if a finding lies in one of them."""
    inside = any(
        part.startswith("_") and not part.startswith("__")
        for finding in findings
        if finding.severity > Severity.NOTE
        for part in finding.scope.split(".")
    )
    return set(_PRIVATE.findall(text)) if inside else set()


def recorder(names: set[str], calls: dict[str, list[Call]]) -> Callable[[Context, ast.Call], None]:
    """A hook that writes down where those functions are called."""

    def record(context: Context, node: ast.Call) -> None:
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in names:
            known = "cuda" in context.facts.known
            calls.setdefault(name, []).append((known, tuple(context.scope.qualname.split("."))))

    return record


def milder(findings: list[Finding], text: str, calls: dict[str, list[Call]]) -> list[Finding]:
    """Findings with those inside of guarded helpers turned into notes.

    A helper counts when every mention of it in the file is a call that was seen: one that is
    handed on, or called from a place that was not looked at, may be reached from anywhere.
    """
    whole = {
        name: seen
        for name, seen in calls.items()
        if len(re.findall(rf"\b{re.escape(name)}\b", text)) == len(seen) + 1
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
