"""Comments that silence a finding: ``# conformance: ignore[DEV101] reason``."""

from __future__ import annotations

import contextlib
import io
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

from conformance.scan.findings import Finding, Severity
from conformance.scan.judging.rule import Rule
from conformance.scan.judging.rules import BY_CODE
from conformance.scan.reading.source import Source

#: Codes of the comments' own faults.
NO_REASON = "DEV001"
UNUSED = "DEV002"

_COMMENT = re.compile(r"#\s*conformance:\s*ignore\b(?:\[([^\]]*)\])?[ \t]*(.*)")
#: What may be a mis-spelt one: the name of the tool and a word, at the beginning of a comment.
_NEARLY = re.compile(r"#\s*conformance\s*[:;.,-]?\s*([A-Za-z-]+)(.*)")
_WORDS = (
    "ignore",
    "ignores",
    "ignored",
    "ignoring",
    "noqa",
    "disable",
    "skip",
    "allow",
    "suppress",
    "silence",
)
_MARK = re.compile(rb"#[^\n]*conformance")


@dataclass
class _Ignore:
    line: int
    column: int
    codes: tuple[str, ...] | None
    reason: str
    text: str
    used: set[str] = field(default_factory=set)


def _comments(source: Source) -> list[tuple[int, int, str]]:
    """Line, column (from 0) and text of every comment; strings that look like one are not."""
    found: list[tuple[int, int, str]] = []
    # A fault ends the tokens; the comments that came before it still count.
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        found.extend(
            (*token.start, token.string)
            for token in tokenize.generate_tokens(io.StringIO("\n".join(source.lines)).readline)
            if token.type == tokenize.COMMENT and "conformance" in token.string
        )
    return found


def _ignores(comments: Iterable[tuple[int, int, str]]) -> list[_Ignore]:
    result = []
    for line, column, text in comments:
        match = _COMMENT.search(text)
        if match is not None:
            codes = tuple(code.strip() for code in (match[1] or "").split(",") if code.strip())
            reason = match[2].strip(" \t-:")
            result.append(_Ignore(line, column + match.start(), codes, reason, match[0]))
        else:
            nearly = _NEARLY.search(text)
            if nearly is not None and _is_meant(nearly[1], nearly[2]):
                result.append(_Ignore(line, column + nearly.start(), None, "", nearly[0]))
    return result


def _is_meant(word: str, rest: str) -> bool:
    """Whether a comment about the tool was to be an ignore: by its word, or by a code behind it."""
    near = bool(get_close_matches(word.lower(), _WORDS, 1, 0.75))
    return near and ("DEV" in rest.upper() or rest.lstrip()[:1] in ("[", "(", "="))


def may_hold(data: bytes) -> bool:
    """Whether bytes may hold an ignore comment."""
    return b"conformance" in data and _MARK.search(data) is not None


def apply_ignores(
    source: Source,
    findings: list[Finding],
    rules: Iterable[Rule],
    comments: Iterable[tuple[int, int, str]] | None = None,
) -> list[Finding]:
    """Findings without the silenced ones, with the faults of the comments added.

    ``comments`` are those of a file that is not Python.

    A comment works on the whole statement that it stands in, or alone above. One without codes or
    without a reason silences nothing.
    """
    active = {rule.code for rule in rules}
    ignores = _ignores(_comments(source) if comments is None else comments)
    by_line: dict[int, list[_Ignore]] = {}
    for ignore in ignores:
        alone = not source.lines[ignore.line - 1][: ignore.column].strip()
        for line in (ignore.line, _next_code(source, ignore.line)) if alone else (ignore.line,):
            by_line.setdefault(line, []).append(ignore)
    kept = []
    for finding in findings:
        silenced = False
        first = min(finding.first_line or finding.line, finding.line)
        for line in range(first, max(finding.last_line, finding.end_line) + 1):
            for ignore in by_line.get(line, ()):
                if finding.code in (ignore.codes or ()) and ignore.reason:
                    ignore.used.add(finding.code)
                    silenced = True
        if not silenced:
            kept.append(finding)
    for ignore in ignores:
        kept += _faults(source, ignore, active)
    return kept


def _next_code(source: Source, line: int) -> int:
    """The line below a comment, past what the comment goes on with."""
    line += 1
    while line < len(source.lines) and source.lines[line - 1].lstrip().startswith("#"):
        line += 1
    return line


def _faults(source: Source, ignore: _Ignore, active: set[str]) -> list[Finding]:
    def fault(code: str, message: str) -> Finding:
        end = ignore.column + len(ignore.text)
        return Finding(
            source.path,
            ignore.line,
            ignore.column + 1,
            ignore.line,
            end + 1,
            code,
            Severity.WARNING,
            message,
            text=ignore.text,
            shape=code,
            source=(source.lines[ignore.line - 1][:400],),
        )

    if ignore.codes is None:
        return [
            fault(NO_REASON, "no ignore: write `# conformance: ignore[DEV101] why it is right`")
        ]
    if not ignore.codes or not ignore.reason:
        return [
            fault(
                NO_REASON, "an ignore needs its codes and a reason: ignore[DEV101] why it is right"
            )
        ]
    unknown = [code for code in ignore.codes if code not in BY_CODE]
    if unknown:
        return [fault(NO_REASON, f"not a rule code: {', '.join(unknown)}")]
    unused = [code for code in ignore.codes if code in active and code not in ignore.used]
    if unused:
        return [fault(UNUSED, f"this ignore silences nothing: {', '.join(unused)}")]
    return []
