"""One file's bytes turned into findings: decode, thin, parse, bind, walk, suppress."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

from conformance.scan.findings import Finding, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.documents import analyse_document, comments, setup_findings
from conformance.scan.judging.rule import Hook, Rule
from conformance.scan.judging.summary import EMPTY, Default, Summary
from conformance.scan.judging.suppress import apply_ignores, may_hold
from conformance.scan.judging.verdicts import Judge
from conformance.scan.judging.walker import Walker
from conformance.scan.knowing.binding import Binding
from conformance.scan.knowing.foreign import ALONE, Foreign
from conformance.scan.knowing.markers import refusing
from conformance.scan.knowing.offers import offers_of
from conformance.scan.knowing.paths import path_facts
from conformance.scan.knowing.placements import Placements
from conformance.scan.knowing.reach import Helpers
from conformance.scan.knowing.resolve import Resolver
from conformance.scan.knowing.scopes import FunctionNode
from conformance.scan.knowing.signatures import is_bound, is_called_by_name, parameters_of
from conformance.scan.reading import prefilter
from conformance.scan.reading.fields import fields_of
from conformance.scan.reading.imports import imports_of
from conformance.scan.reading.kinds import is_other
from conformance.scan.reading.notebooks import Notebook, NotebookError, read_notebook
from conformance.scan.reading.saves import saves_of
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
    """Findings of one file by itself, in order of place; never raises, whatever the bytes are.

    ``path`` is relative to the project: its parts may declare a backend (``kernels/cuda/x.py``).
    """
    return study(path, data, rules)[0]


def study(
    path: str, data: bytes, rules: Iterable[Rule], foreign: Foreign = ALONE
) -> tuple[list[Finding], Summary]:
    """Findings of one file, given what others say about it, and what it says to them."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _RECURSION))
    try:
        if path.endswith(".ipynb"):
            findings, summary = _study_notebook(path, data, list(rules), foreign)
        elif is_other(path):
            findings, summary = _study_other(path, data, list(rules)), EMPTY
        else:
            findings, summary = _study_python(path, data, list(rules), foreign)
    except SourceError as error:
        findings = [failure(path, error.line, f"could not be read: {error}")]
        summary = EMPTY
    except (RecursionError, MemoryError):
        findings = [failure(path, 1, "could not be analysed: nested too deeply")]
        summary = EMPTY
    finally:
        sys.setrecursionlimit(limit)
    findings.sort(key=lambda finding: finding.sort_key)
    return findings, summary


def _study_other(path: str, data: bytes, rules: list[Rule]) -> list[Finding]:
    source, findings = analyse_document(path, data, rules)
    if may_hold(data):
        source = Source(path, *decode(data))
        findings = apply_ignores(source, findings, rules, comments(source))
    return _with_lines(source, findings)


def _study_python(
    path: str, data: bytes, rules: list[Rule], foreign: Foreign
) -> tuple[list[Finding], Summary]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = decode(data)[0].encode()
    summary = _told(data)
    words = prefilter.hot_words(data)
    ignores = may_hold(data)
    placed = {name for name, _ in foreign.placed}
    listed = setup_findings(path, data, rules) if path.endswith("setup.py") else []
    if not words and not ignores and not placed and not listed:
        return [], summary
    offsets = prefilter.hot_offsets(data, words)
    if not offsets and not ignores and not placed and not listed:
        return [], summary
    text, encoding = decode(data)
    source = Source(path, text, encoding)
    if encoding not in AS_UTF8:
        data = text.encode("utf-8", "surrogatepass")
        offsets = prefilter.hot_offsets(data, words)
    findings, summary = _study_source(source, data, offsets, rules, foreign, summary)
    findings += _with_lines(source, listed)
    return apply_ignores(source, findings, rules) if ignores else findings, summary


def _told(data: bytes) -> Summary:
    """What every file tells, also one that speaks of no device: read from its bytes."""
    return Summary(tuple(imports_of(data)), placing=fields_of(data), saves=saves_of(data))


def _study_notebook(
    path: str, data: bytes, rules: list[Rule], foreign: Foreign
) -> tuple[list[Finding], Summary]:
    if not prefilter.hot_words(data) and b"conformance" not in data:
        return [], EMPTY
    try:
        notebook: Notebook = read_notebook(data)
    except NotebookError as error:
        return [failure(path, error.line, f"could not be read: {error}")], EMPTY
    source = Source(path, notebook.text)
    encoded = notebook.text.encode("utf-8", "surrogatepass")
    offsets = prefilter.hot_offsets(encoded, prefilter.hot_words(encoded))
    findings = [
        failure(path, line, f"syntax error: {message}") for line, message in notebook.errors
    ]
    summary = _told(encoded)
    found, summary = _study_source(source, encoded, offsets, rules, foreign, summary)
    findings += found
    if may_hold(encoded):
        findings = apply_ignores(source, findings, rules)
    return [notebook.place(finding) for finding in findings], summary


def _study_source(
    source: Source,
    data: bytes,
    offsets: list[int],
    rules: list[Rule],
    foreign: Foreign,
    summary: Summary,
) -> tuple[list[Finding], Summary]:
    """Parse and walk; ``data`` is the text in UTF-8, ``offsets`` where the words are in it."""
    try:
        binding = Binding(data, offsets, plain=source.encoding in AS_UTF8, foreign=foreign)
    except SourceError as error:
        if "{{" in source.path:
            return [], summary  # a template, whose names are filled in before it is Python
        failed = failure(source.path, error.line, f"syntax error: {error}")
        return [failed], replace(summary, hot=True)
    binding.complete()
    context, placements = walk(source, binding, [rule.hooks for rule in rules])
    findings = context.findings
    helpers = Helpers(findings, binding.tree, source, foreign.reached)
    # Helpers further from a guard than so many calls count as reached from anywhere.
    tree, offers = binding.tree, offers_of(context.resolver, context.conditions)
    for _ in range(_CALLS if helpers.names else 0):
        binding.take_in(helpers.names)
        walk(source, binding, [{"call": helpers.recorder()}])
        if not helpers.widen():
            break
    if helpers.calls or helpers.idle:
        findings = helpers.milder(findings)
    summary = replace(
        summary,
        offers=offers,
        passed=tuple(sorted(placements.handed.passed)),
        unplaced=tuple(sorted(placements.unplaced)),
        defaults=tuple(_defaults(tree, findings)),
        methods=tuple(_methods(tree, findings)),
        fields=tuple(sorted(placements.handed.fields)),
        refusing=tuple(sorted(context.refusing_own)),
        hot=True,
    )
    return _with_lines(source, findings), summary


def walk(
    source: Source, binding: Binding, hooks: list[dict[str, Hook]]
) -> tuple[Context, Placements]:
    """One walk over a file, with the hooks of some rules."""
    context = Context(source, Resolver(binding.scopes))
    context.refusing_own = refusing(context, binding.tree)
    context.guarding = frozenset(context.refusing_own).union(binding.foreign.refusing)
    context.extensions = frozenset(binding.foreign.extensions)
    judge = Judge(context, [kind["placement"] for kind in hooks if "placement" in kind])
    placements = Placements(context, judge, binding.foreign)
    walker = Walker(context, placements, hooks, binding.hot)
    walker.run(binding.tree, path_facts(source.path).both(binding.foreign.facts()))
    placements.finish()
    return context, placements


def _defaults(tree: ast.Module, findings: list[Finding]) -> Iterator[Default]:
    """Findings that are defaults of what a function, a class or a method is given."""
    places = {(f.line, f.column): f for f in findings if f.code == "DEV103"}
    if not places:
        return
    for node, name in _definitions(tree):
        for parameter in parameters_of(node)[0]:
            value = _given_by(parameter.default)
            # Columns of a line in ASCII; on another line the default keeps its severity.
            if value is not None and (value.lineno, value.col_offset + 1) in places:
                place = parameter.place - (1 if "." in name and is_bound(node) else 0)
                yield value.lineno, value.col_offset + 1, name, parameter.name, place


def _given_by(default: ast.expr | None) -> ast.expr | None:
    """The value of a default that a field's own call holds (``field(default="cuda")``)."""
    for keyword in default.keywords if isinstance(default, ast.Call) else ():
        if keyword.arg == "default":
            return keyword.value
    return default


def _definitions(tree: ast.Module) -> Iterator[tuple[FunctionNode | ast.ClassDef, str]]:
    """Functions and classes of a module, and the methods that only calls by name reach."""
    for node in tree.body:
        if isinstance(node, FunctionNode | ast.ClassDef):
            yield node, node.name
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, FunctionNode) and is_called_by_name(node, inner):
                    yield inner, f"{node.name}.{inner.name}"


def _methods(tree: ast.Module, findings: list[Finding]) -> Iterator[str]:
    """The methods that findings lie in and that only calls by name reach."""
    scopes = {f.scope for f in findings if f.severity > Severity.NOTE and "." in f.scope}
    if scopes:
        for _, name in _definitions(tree):
            if "." in name and any(s == name or s.startswith(f"{name}.") for s in scopes):
                yield name


def _with_lines(source: Source, findings: list[Finding]) -> list[Finding]:
    """Findings with the source lines they show (at most three, each cut to a sane length)."""
    result = []
    for finding in findings:
        last = min(finding.end_line, finding.line + 2, len(source.lines))
        shown = tuple(line[:400] for line in source.lines[finding.line - 1 : last])
        result.append(replace(finding, source=shown))
    return result
