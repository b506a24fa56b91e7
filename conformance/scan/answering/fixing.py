"""Applies fixes to files: non-overlapping edits, again until nothing is left to mend."""

from __future__ import annotations

import ast
import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from conformance.scan.answering.versions import Version, fitting
from conformance.scan.findings import Edit, Finding
from conformance.scan.judging.analysis import UNREADABLE, analyse, study
from conformance.scan.judging.rule import Rule
from conformance.scan.knowing.foreign import ALONE, Foreign
from conformance.scan.reading.kinds import is_other
from conformance.scan.reading.source import SourceError, decode

_PASSES = 10


@dataclass
class Fixed:
    """A file before and after, as bytes, and how many findings were mended."""

    before: bytes
    after: bytes
    count: int


def _parses(path: str, text: str) -> bool:
    """Whether a text is still what the file's name says; a file that is not Python was read anew."""
    if is_other(path):
        return not any(f.code == UNREADABLE for f in analyse(path, text.encode(), ()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """Text with edits made; they must not overlap."""
    parts: list[str] = []
    done = 0
    for edit in sorted(edits):
        parts += [text[done : edit.start], edit.text]
        done = edit.end
    return "".join([*parts, text[done:]])


def _choose(findings: Sequence[Finding], unsafe: bool) -> tuple[list[Edit], int]:
    """Edits of as many findings as fit without overlap, first come first served."""
    chosen: set[Edit] = set()
    count = 0
    for finding in findings:
        fix = finding.fix
        if fix is None or not (fix.safe or unsafe):
            continue
        fresh = [edit for edit in fix.edits if edit not in chosen]
        if all(_apart(edit, other) for edit in fresh for other in chosen):
            chosen.update(fresh)
            count += 1
    return list(chosen), count


def _apart(one: Edit, other: Edit) -> bool:
    if one.start == one.end == other.start == other.end:
        return False
    return one.end <= other.start or other.end <= one.start


@dataclass
class Pass:
    """One round of mending: what was found, what was done about it, and the text after it."""

    findings: list[Finding]
    edits: list[Edit]
    count: int
    before: bytes
    after: bytes


def passes(
    path: str,
    data: bytes,
    rules: Sequence[Rule],
    *,
    unsafe: bool,
    keep: Callable[[Finding], bool] = lambda finding: True,
    torch: Version | None = None,
    foreign: Foreign = ALONE,
) -> Iterator[Pass]:
    """Rounds of mending until nothing fixable is left.

    A round whose result would not parse, or cannot be written in the file's encoding, is dropped
    whole and ends them. Nothing is written that the given PyTorch does not have. ``foreign`` is
    what the rest of the project says of the file.
    """
    for _ in range(_PASSES):
        findings = [fitting(f, torch) for f in study(path, data, rules, foreign)[0] if keep(f)]
        edits, count = _choose(findings, unsafe)
        if not edits:
            return
        try:
            text, encoding = decode(data)
            mended = apply_edits(text, edits)
            encoded = mended.encode(encoding)
        except (SourceError, UnicodeEncodeError):
            return
        if mended == text or not _parses(path, mended):
            return
        yield Pass(findings, edits, count, data, encoded)
        data = encoded


def fix_source(
    path: str,
    data: bytes,
    rules: Sequence[Rule],
    *,
    unsafe: bool,
    keep: Callable[[Finding], bool] = lambda finding: True,
    torch: Version | None = None,
    foreign: Foreign = ALONE,
) -> Fixed:
    """Bytes with every fixable finding mended, in the encoding they came in."""
    after, total = data, 0
    for made in passes(path, data, rules, unsafe=unsafe, keep=keep, torch=torch, foreign=foreign):
        after, total = made.after, total + made.count
    return Fixed(data, after, total)


def patch(shown: str, fixed: Fixed) -> str:
    """Unified diff of what was mended."""
    before, after = (
        decode(content)[0].splitlines(keepends=True) for content in (fixed.before, fixed.after)
    )
    return "".join(
        line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(before, after, f"a/{shown}", f"b/{shown}")
    )
