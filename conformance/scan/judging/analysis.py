"""One file's bytes turned into findings: decode, thin, parse, bind, walk, suppress."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace

from conformance.scan.findings import Finding, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.documents import analyse_document, comments, setup_findings
from conformance.scan.judging.rule import Hook, Rule
from conformance.scan.judging.suppress import apply_ignores, may_hold
from conformance.scan.judging.verdicts import Judge
from conformance.scan.judging.walker import Walker
from conformance.scan.knowing.binding import Binding
from conformance.scan.knowing.paths import path_facts
from conformance.scan.knowing.placements import Placements
from conformance.scan.knowing.reach import Helpers
from conformance.scan.knowing.resolve import Resolver
from conformance.scan.reading import prefilter
from conformance.scan.reading.kinds import is_other
from conformance.scan.reading.notebooks import Notebook, NotebookError, read_notebook
from conformance.scan.reading.source import AS_UTF8, Source, SourceError, decode

#: Code of "this file could not be analysed".
UNREADABLE = "DEV000"
_RECURSION = 20_000
_CALLS = 12


def failure(path: str, line: int, message: str) -> Finding:
    """The finding that stands for a file or part of one that could not be read."""
    line = max(line, 1)
    return Finding(path, line, 1, line, 2, UNREADABLE, Severity.ERROR, message, text=message)


def analyse(path: str, data: bytes, rules: Iterable[Rule]) -> list[Finding]:
    """Findings of one file, in order of place; never raises, whatever the bytes are.

    ``path`` is relative to the project: its parts may declare a backend (``kernels/cuda/x.py``).
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _RECURSION))
    try:
        if path.endswith(".ipynb"):
            findings = _analyse_notebook(path, data, list(rules))
        elif is_other(path):
            findings = _analyse_other(path, data, list(rules))
        else:
            findings = _analyse_python(path, data, list(rules))
    except SourceError as error:
        findings = [failure(path, error.line, f"could not be read: {error}")]
    except (RecursionError, MemoryError):
        findings = [failure(path, 1, "could not be analysed: nested too deeply")]
    finally:
        sys.setrecursionlimit(limit)
    findings.sort(key=lambda finding: finding.sort_key)
    return findings


def _analyse_other(path: str, data: bytes, rules: list[Rule]) -> list[Finding]:
    source, findings = analyse_document(path, data, rules)
    if may_hold(data):
        source = Source(path, *decode(data))
        findings = apply_ignores(source, findings, rules, comments(source))
    return _with_lines(source, findings)


def _analyse_python(path: str, data: bytes, rules: list[Rule]) -> list[Finding]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = decode(data)[0].encode()
    words = prefilter.hot_words(data)
    ignores = may_hold(data)
    listed = setup_findings(path, data, rules) if path.endswith("setup.py") else []
    if not words and not ignores and not listed:
        return []
    offsets = prefilter.hot_offsets(data, words)
    if not offsets and not ignores and not listed:
        return []
    text, encoding = decode(data)
    source = Source(path, text, encoding)
    if encoding not in AS_UTF8:
        data = text.encode("utf-8", "surrogatepass")
        offsets = prefilter.hot_offsets(data, words)
    findings = _analyse_source(source, data, offsets, rules) + _with_lines(source, listed)
    return apply_ignores(source, findings, rules) if ignores else findings


def _analyse_notebook(path: str, data: bytes, rules: list[Rule]) -> list[Finding]:
    if not prefilter.hot_words(data) and b"conformance" not in data:
        return []
    try:
        notebook: Notebook = read_notebook(data)
    except NotebookError as error:
        return [failure(path, error.line, f"could not be read: {error}")]
    source = Source(path, notebook.text)
    encoded = notebook.text.encode("utf-8", "surrogatepass")
    offsets = prefilter.hot_offsets(encoded, prefilter.hot_words(encoded))
    findings = [
        failure(path, line, f"syntax error: {message}") for line, message in notebook.errors
    ]
    findings += _analyse_source(source, encoded, offsets, rules)
    if may_hold(encoded):
        findings = apply_ignores(source, findings, rules)
    return [notebook.place(finding) for finding in findings]


def _analyse_source(
    source: Source, data: bytes, offsets: list[int], rules: list[Rule]
) -> list[Finding]:
    """Parse and walk; ``data`` is the text in UTF-8, ``offsets`` where the words are in it."""
    try:
        binding = Binding(data, offsets, plain=source.encoding in AS_UTF8)
    except SourceError as error:
        return [failure(source.path, error.line, f"syntax error: {error}")]
    binding.complete()
    findings = _walk(source, binding, [rule.hooks for rule in rules])
    helpers = Helpers(findings, binding.tree, source)
    # Helpers further from a guard than so many calls count as reached from anywhere.
    for _ in range(_CALLS if helpers.names else 0):
        binding.take_in(helpers.names)
        _walk(source, binding, [{"call": helpers.recorder()}])
        if not helpers.widen():
            break
    if helpers.calls or helpers.idle:
        findings = helpers.milder(findings)
    return _with_lines(source, findings)


def _walk(source: Source, binding: Binding, hooks: list[dict[str, Hook]]) -> list[Finding]:
    """One walk over a file, with the hooks of some rules."""
    context = Context(source, Resolver(binding.scopes))
    judge = Judge(context, [kind["placement"] for kind in hooks if "placement" in kind])
    placements = Placements(context, judge)
    walker = Walker(context, placements, hooks, binding.hot)
    walker.run(binding.tree, path_facts(source.path))
    placements.finish()
    return context.findings


def _with_lines(source: Source, findings: list[Finding]) -> list[Finding]:
    """Findings with the source lines they show (at most three, each cut to a sane length)."""
    result = []
    for finding in findings:
        last = min(finding.end_line, finding.line + 2, len(source.lines))
        shown = tuple(line[:400] for line in source.lines[finding.line - 1 : last])
        result.append(replace(finding, source=shown))
    return result
