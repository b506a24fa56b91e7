"""Text for people: one line a finding, or the source with the place underlined."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence

from conformance.scan.findings import Finding
from conformance.scan.judging.rules import BY_CODE


def printable(text: str) -> str:
    """Text without characters that could move the cursor, fake a line or break an encoding."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def place(finding: Finding) -> str:
    """``path:line:column``, with the cell for notebooks."""
    cell = f":cell {finding.cell}:{finding.cell_line}" if finding.cell else ""
    return f"{printable(finding.path)}{cell}:{finding.line}:{finding.column}"


def _line(finding: Finding) -> str:
    fixable = " [*]" if finding.fix is not None and finding.fix.safe else ""
    return (
        f"{place(finding)}: {finding.code}{fixable} {finding.severity.label}: "
        f"{printable(finding.message)}"
    )


def concise(findings: Sequence[Finding]) -> str:
    """One line a finding; ``[*]`` marks what ``--fix`` mends."""
    return "".join(f"{_line(finding)}\n" for finding in findings)


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _excerpt(finding: Finding) -> list[str]:
    """The source line with the place underlined."""
    if not finding.source:
        return []
    line = finding.source[0]
    start = finding.column - 1
    one_line = finding.end_line == finding.line or finding.cell > 0
    end = finding.end_column - 1 if one_line else len(line)
    end = max(min(end, len(line)), start + 1)
    shown = printable(line.replace("\t", " "))
    before = _width(printable(line[:start].replace("\t", " ")))
    marked = max(1, _width(printable(line[start:end].replace("\t", " "))))
    if len(shown) > 160:
        cut = max(0, before - 60)
        shown, before = shown[cut : cut + 160], before - cut
        marked = min(marked, 160 - before)
    number = str(finding.cell_line or finding.line)
    gutter = " " * len(number)
    return [f"{gutter} |", f"{number} | {shown}", f"{gutter} | {' ' * before}{'^' * marked}"]


def full(findings: Sequence[Finding]) -> str:
    """Each finding with its source line, why it matters and what to do."""
    blocks: list[str] = []
    for finding in findings:
        lines = [_line(finding), *_excerpt(finding)]
        rule = BY_CODE.get(finding.code)
        if rule is not None:
            lines += [f"  why: {rule.why}", f"  fix: {rule.remedy}"]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def statistics(findings: Sequence[Finding], form: str = "concise") -> str:
    """How often each rule fired, most often first: as text, or as JSON."""
    counts = Counter(finding.code for finding in findings)
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    names = {code: BY_CODE[code].name if code in BY_CODE else "engine" for code in counts}
    if form == "json":
        table = [{"code": code, "name": names[code], "count": count} for code, count in rows]
        return json.dumps(table, indent=2) + "\n"
    return "".join(f"{count:>6}  {code}  {names[code]}\n" for code, count in rows)
