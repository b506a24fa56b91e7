"""One file's bytes turned into findings: decode, thin, parse, bind, walk, suppress."""

from __future__ import annotations

import ast
import contextlib
import sys
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from conformance.scan.findings import Finding, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.rule import Hook, Rule
from conformance.scan.judging.suppress import apply_ignores
from conformance.scan.judging.verdicts import Judge
from conformance.scan.judging.walker import Walker
from conformance.scan.knowing.facts import NOTHING, Facts, known
from conformance.scan.knowing.packages import PROVIDERS
from conformance.scan.knowing.placements import Placements
from conformance.scan.knowing.reach import Helpers
from conformance.scan.knowing.resolve import Resolver
from conformance.scan.knowing.scopes import HotLines, Scopes
from conformance.scan.knowing.vocabulary import declared_backends
from conformance.scan.reading import prefilter
from conformance.scan.reading.notebooks import Notebook, NotebookError, read_notebook
from conformance.scan.reading.source import Source, SourceError, decode

#: Code of "this file could not be analysed".
UNREADABLE = "DEV000"
_RECURSION = 20_000
_ROUNDS = 3
_CALLS = 12
_TEXT_ENCODINGS = ("utf-8", "utf-8-sig", "ascii")


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


def _analyse_python(path: str, data: bytes, rules: list[Rule]) -> list[Finding]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = decode(data)[0].encode()
    words = prefilter.hot_words(data)
    ignores = b"conformance:" in data
    if not words and not ignores:
        return []
    offsets = prefilter.hot_offsets(data, words)
    if not offsets and not ignores:
        return []
    text, encoding = decode(data)
    source = Source(path, text, encoding)
    if encoding not in _TEXT_ENCODINGS:
        data = text.encode("utf-8", "surrogatepass")
        offsets = prefilter.hot_offsets(data, words)
    findings = _analyse_source(source, data, offsets, rules)
    return apply_ignores(source, findings, rules) if ignores else findings


def _analyse_notebook(path: str, data: bytes, rules: list[Rule]) -> list[Finding]:
    if not prefilter.hot_words(data) and b"conformance:" not in data:
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
    if b"conformance:" in encoded:
        findings = apply_ignores(source, findings, rules)
    return [notebook.place(finding) for finding in findings]


def _analyse_source(
    source: Source, data: bytes, offsets: list[int], rules: list[Rule]
) -> list[Finding]:
    """Parse and walk; ``data`` is the text in UTF-8, ``offsets`` where the words are in it."""
    parser = _Parser(data, source.encoding in _TEXT_ENCODINGS)
    try:
        tree = parser.parse(offsets)
    except SourceError as error:
        return [failure(source.path, error.line, f"syntax error: {error}")]
    marks = sorted({*offsets, *prefilter.binding_offsets(data)})
    names: set[str] = set()
    for _ in range(_ROUNDS):
        hot = HotLines(_lines(data, marks))
        scopes = Scopes(tree)
        scopes.collect(tree, hot, names)
        new = (scopes.spread | scopes.local) - names
        if not new:
            break
        names |= new
        marks = sorted({*marks, *_occurrences(data, new)})
        if scopes.spread:
            # A name of the module or of self may be read in functions that were thinned out.
            offsets = sorted({*offsets, *_occurrences(data, scopes.spread)})
            tree = parser.parse(offsets)
    else:
        hot = HotLines(_lines(data, marks))
        scopes = Scopes(tree)
        scopes.collect(tree, hot, names)
    findings = _walk(source, tree, scopes, hot, [rule.hooks for rule in rules])
    helpers = Helpers(findings, tree, source)
    # Helpers further from a guard than so many calls count as reached from anywhere.
    for _ in range(_CALLS if helpers.names else 0):
        called = _occurrences(data, helpers.names)
        tree = parser.parse(sorted({*offsets, *called}))
        hot = HotLines(_lines(data, sorted({*marks, *called})))
        scopes = Scopes(tree)
        scopes.collect(tree, hot, names)
        _walk(source, tree, scopes, hot, [{"call": helpers.recorder()}])
        if not helpers.widen():
            break
    if helpers.calls or helpers.idle:
        findings = helpers.milder(findings)
    return _with_lines(source, findings)


def _walk(
    source: Source,
    tree: ast.Module,
    scopes: Scopes,
    hot: HotLines,
    hooks: list[dict[str, Hook]],
) -> list[Finding]:
    """One walk over a tree, with the hooks of some rules."""
    context = Context(source, Resolver(scopes))
    judge = Judge(context, [kind["placement"] for kind in hooks if "placement" in kind])
    placements = Placements(context, judge)
    Walker(context, placements, hooks, hot).run(tree, _path_facts(source.path))
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


class _Parser:
    """Parses the thinned source, or the whole where thinning broke it; again only if it grew."""

    def __init__(self, data: bytes, plain: bool) -> None:
        self._data = data
        self._plain = plain
        self._parsed = b""
        self._tree: ast.Module | None = None

    def parse(self, offsets: list[int]) -> ast.Module:
        """Syntax tree that holds at least the given places; raises SourceError."""
        thin = prefilter.thin(self._data, offsets)
        if self._tree is None or (thin != self._parsed and self._parsed is not self._data):
            self._tree = self._parse(thin)
        return self._tree

    def _parse(self, thin: bytes) -> ast.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if thin is not self._data:
                # It fails where a definition stood inside a string or an odd construct.
                with contextlib.suppress(SyntaxError, ValueError):
                    self._parsed = thin
                    return self._syntax(thin)
            self._parsed = self._data
            try:
                return self._syntax(self._data)
            except SyntaxError as error:
                raise SourceError(error.msg or "invalid syntax", error.lineno or 1) from None
            except ValueError as error:
                raise SourceError(str(error)) from None

    def _syntax(self, data: bytes) -> ast.Module:
        return ast.parse(data if self._plain else data.decode("utf-8", "surrogatepass"))


def _lines(data: bytes, offsets: list[int]) -> list[int]:
    """Line numbers of byte offsets; a lone carriage return ends a line as well."""
    lines: list[int] = []
    line, done = 1, 0
    lone = data.count(b"\r") != data.count(b"\r\n")
    for offset in offsets:
        if lone:
            stretch = data[done:offset].replace(b"\r\n", b"\n")
            line += stretch.count(b"\n") + stretch.count(b"\r")
        else:
            line += data.count(b"\n", done, offset)
        done = offset
        lines.append(line)
    return lines


def _occurrences(data: bytes, names: set[str]) -> list[int]:
    found: list[int] = []
    for name in names:
        word = name.encode("utf-8", "surrogatepass")
        for at in prefilter.find_all(data, word):
            before, after = data[at - 1 : at], data[at + len(word) : at + len(word) + 1]
            if not (before.isalnum() or before == b"_" or after.isalnum() or after == b"_"):
                found.append(at)
    return found


def _path_backends(path: str) -> list[str]:
    backends: set[str] = set()
    for part in PurePosixPath(path).parts:
        backends.update(declared_backends(part.removesuffix(".py")))
    for package, backend in PROVIDERS.items():
        if f"/{package.replace('.', '/')}/" in f"/{path}":
            backends.add(backend)
    return sorted(backends)


def declared_by(path: str) -> str:
    """What a path adds to the identity of a file's content: the backends that it declares."""
    return "+".join(_path_backends(path))


def _path_facts(path: str) -> Facts:
    """What the parts of a path say about the backend that the file is written for."""
    backends = _path_backends(path)
    return known("name", *backends) if backends else NOTHING
