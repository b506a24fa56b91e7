"""What a change of a tree breaks and what it mends, as one Markdown table for its reviewers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conformance.expect import unmoved
from conformance.report import BLOCKED, BROKEN, EXPECTED, FACT_TITLES, FAIL, PASS, Case, Report
from conformance.scan.answering.baseline import Entry, compare
from conformance.scan.config import load_config
from conformance.scan.findings import Finding
from conformance.scan.reading.discover import discover
from conformance.scan.runner import scan

NEW, CHANGED, UNDECIDED, FIXED = "new", "fails otherwise", "not decided any more", "fixed"
#: Finds the comment again that an earlier run has made.
MARK = "<!-- conformance: since base -->"
_ORDER = (NEW, CHANGED, UNDECIDED, FIXED)
_BAD = (FAIL, BROKEN, EXPECTED)
# A comment may have 65,536 characters.
_MOST, _WIDTH = 80, 300


@dataclass(frozen=True)
class Row:
    """One difference: its kind, who says so, on which devices, where, and what.

    Attributes:
        kind: `new`, `fails otherwise`, `not decided any more` or `fixed`.
        who: a fact with its title, or a rule of the scanner.
        devices: targets, comma-separated; empty for the scanner.
        place: `file:line`, or a file.
        said: one sentence.
    """

    kind: str
    who: str
    devices: str
    place: str
    said: str


def of_suite(base: Report, head: Report) -> list[Row]:
    """What the facts say otherwise of `head` than of `base`, once for devices that agree."""
    before = {(case.name, case.target): case for case in _cases(base)}
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for case in _cases(head):
        kind = _kind(before.get((case.name, case.target)), case)
        if kind:
            row = case.rows[0] if case.rows else case.name
            who = f"{row} {FACT_TITLES[row]}" if row in FACT_TITLES else row
            found.setdefault((kind, who, case.place, case.message), []).append(case.target)
    return [
        Row(kind, who, ", ".join(dict.fromkeys(filter(None, devices))), place, said)
        for (kind, who, place, said), devices in found.items()
    ]


def _cases(report: Report) -> list[Case]:
    return [case for part in report.parts for case in part.cases]


def _kind(before: Case | None, now: Case) -> str:
    was_bad = before is not None and before.outcome in _BAD
    if now.outcome in _BAD:
        if before is None or not was_bad:
            return NEW
        return "" if unmoved(before.message) == unmoved(now.message) else CHANGED
    if was_bad:
        return UNDECIDED if now.outcome == BLOCKED else FIXED
    lost = before is not None and before.outcome == PASS and now.outcome == BLOCKED
    return UNDECIDED if lost else ""


def of_scanner(base: Sequence[Finding], head: Sequence[Finding]) -> list[Row]:
    """The findings that only one of two trees has, whatever moved between them."""
    compared = compare(head, [Entry.of(finding) for finding in base])
    rows = [Row(NEW, f.code, "", f"{f.path}:{f.line}", f.message) for f in compared.new]
    messages: dict[Entry, Finding] = {Entry.of(finding): finding for finding in base}
    for entry in compared.left:
        gone = messages[entry]
        rows.append(Row(FIXED, gone.code, "", gone.path, gone.message))
    return rows


def findings(tree: Path) -> list[Finding]:
    """What the scanner finds in a tree by the tree's own settings; nothing is written there.

    Raises:
        ConfigError: those settings are wrong.
    """
    config = replace(load_config(None, tree), cache=False)
    targets = discover([str(tree)], config)
    within = {target.shown: target.logical for target in targets}
    return [f.at(within.get(f.path, f.path)) for f in scan(targets, config).findings]


def page(rows: Iterable[Row], notes: Iterable[str] = ()) -> str:
    """The table as Markdown, the worst first; what code says is quoted, and mentions nobody."""
    ordered = sorted(rows, key=lambda row: (_ORDER.index(row.kind), row.who, row.place))
    counts = [f"{sum(r.kind == kind for r in ordered)} {kind}" for kind in (NEW, FIXED)]
    more = [f"{n} {kind}" for kind in _ORDER[1:3] if (n := sum(r.kind == kind for r in ordered))]
    lines = [MARK, f"### Devices: {', '.join((*counts, *more))} since base", ""]
    if ordered:
        lines += ["| | what | on | where | said |", "| --- | --- | --- | --- | --- |"]
    for row in ordered[:_MOST]:
        kind = f"**{row.kind}**" if row.kind != FIXED else row.kind
        cells = (kind, _quiet(row.who), row.devices or "reading", _code(row.place))
        lines.append(f"| {' | '.join(cells)} | {_code(row.said)} |")
    if len(ordered) > _MOST:
        lines.append(f"\nand {len(ordered) - _MOST} more")
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def unchanged(base: Report, head: Report, kept: int) -> str:
    """One line on what was wrong before and still is, findings of the scanner as a number."""
    before = {(case.name, case.target): case for case in _cases(base)}
    still = [
        case
        for case in _cases(head)
        if case.outcome in _BAD and not _kind(before.get((case.name, case.target)), case)
    ]
    facts = dict.fromkeys(row for case in still for row in case.rows)
    return f"Wrong before and still: {', '.join(facts) or 'no fact'}; {kept} findings of reading."


def _quiet(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    """Text of another project's code as a table's cell: in a code span nothing is markup."""
    short = " ".join(text.replace("`", "'").split())
    short = short if len(short) <= _WIDTH else f"{short[:_WIDTH]}…"
    return f"`{short}`".replace("|", "\\|") if short else ""
