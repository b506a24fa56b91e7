"""A report for people: text for the terminal, Markdown, and one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path

from conformance import report_facts
from conformance.report import FAIL, Case, Part, Report, ReportError, row_title

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .2rem .8rem; border-bottom: 1px solid #8884; }
td.pass { color: light-dark(#17803d, #5cc98a); } td.fail { color: #fff; background: #b3261e; font-weight: 600; }
td.expected, td.broken, td.blocked { color: light-dark(#9a6700, #d9a93a); } td.absent, td.none { opacity: .55; }
th[scope=row] { font-weight: 400; min-width: 11rem; vertical-align: top; } td.said p { margin: .15rem 0; } td { vertical-align: top; }
thead th { white-space: nowrap; } td.said { min-width: 22rem; overflow-wrap: anywhere; } small { opacity: .7; }
code, pre { font: 13px/1.4 ui-monospace, monospace; } pre { overflow-x: auto; }
"""
_CLASSES = {"pass": "pass", "fail": "fail", "fail (expected)": "expected", "absent": "absent"}


def text_lines(report: Report) -> list[str]:
    """The matrix and what failed, for a terminal."""
    matrix, headings = report.matrix(), report.headings()
    if not matrix:
        return ["no case ran"]
    if report.foreign():
        return report_facts.text(report)
    width = max(len(row_title(row)) for row in matrix)
    sizes = [max(len(h), 8) for h in headings]
    lines = [_cells(" " * width, headings, sizes)]
    lines += [_cells(row_title(row).ljust(width), cells, sizes) for row, cells in matrix.items()]
    for case in report.failures():
        lines += ["", f"FAIL {case_title(case)}", f"     {_where(case)}"]
        lines += [f"     {touch}" for touch in case.touches if touch not in case.message]
    touches = report.library_touches()
    if touches:
        total = sum(touches.values())
        lines += ["", f"{total} harmless touches of torch.cuda by libraries, most of them at:"]
        lines += [f"  {count:6d} x {place}" for place, count in list(touches.items())[:5]]
    return lines


def markdown(report: Report) -> str:
    """The report as Markdown."""
    matrix, headings = report.matrix(), report.headings()
    lines = ["# Conformance", "", *_bullets(report), ""]
    if report.foreign():
        return "\n".join([*lines, *report_facts.markdown(report)]) + "\n"
    lines += ["| |" + "".join(f" {h} |" for h in headings)]
    lines += ["| --- |" + " --- |" * len(headings)]
    for row, cells in matrix.items():
        lines.append(f"| {_pipe(row_title(row))} |" + "".join(f" {_bold(c)} |" for c in cells))
    if report.failures():
        lines += ["", "## Failures", ""]
    for case in report.failures():
        lines += [f"- **{_pipe(case_title(case))}**: {_pipe(_where(case))}"]
        lines += [f"  - `{touch}`" for touch in case.touches]
    lines += ["", "## Slowest cases", "", "| case | seconds |", "| --- | --- |"]
    lines += [f"| {_pipe(case_title(c))} | {c.seconds:.2f} |" for c in slowest(report)]
    touches = report.library_touches()
    if touches:
        lines += ["", "## Touches of CUDA by libraries", "", "| where | times |", "| --- | --- |"]
        lines += [f"| `{place}` | {count} |" for place, count in touches.items()]
    return "\n".join(lines) + "\n"


def page(report: Report) -> str:
    """The report as one HTML page that needs nothing beside it."""
    esc = html.escape
    head = "".join(f"<th>{esc(h)}</th>" for h in report.headings())
    body = ""
    for row, cells in report.matrix().items():
        row_cells = "".join(f'<td class="{_CLASSES.get(c, "none")}">{esc(c)}</td>' for c in cells)
        body += f"<tr><th scope=row>{esc(row_title(row))}</th>{row_cells}</tr>\n"
    parts = [f"<ul>{''.join(f'<li>{esc(line[2:])}</li>' for line in _bullets(report))}</ul>"]
    if report.foreign():
        names = dict.fromkeys(Path(part.machine.tree).name for part in report.parts)
        return _whole_page([*parts, *report_facts.html(report)], f"of {', '.join(names)}")
    parts += [f"<table><thead><tr><th></th>{head}</tr></thead><tbody>\n{body}</tbody></table>"]
    if report.failures():
        parts.append("<h2>Failures</h2>")
    for case in report.failures():
        touched = esc("\n".join(case.touches))
        parts.append(f"<h3>{esc(case_title(case))}</h3><p>{esc(_where(case))}</p>")
        parts += [f"<pre>{touched}</pre>"] if touched else []
    parts.append(
        "<h2>Slowest cases</h2>"
        + _table(
            ("case", "seconds"), [(case_title(c), f"{c.seconds:.2f}") for c in slowest(report)]
        )
    )
    touches = [(place, str(count)) for place, count in report.library_touches().items()]
    if touches:
        parts.append("<h2>Touches of CUDA by libraries</h2>" + _table(("where", "times"), touches))
    return _whole_page(parts)


def _whole_page(parts: Sequence[str], whose: str = "") -> str:
    title = html.escape(f"Conformance {whose}".strip())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )


FORMATS: dict[str, Callable[[Report], str]] = {
    ".md": markdown,
    ".json": Report.to_json,
    ".html": page,
}


def check_format(path: Path) -> None:
    """Refuse a file name whose extension is none of `FORMATS`.

    Raises:
        ReportError: it is.
    """
    if path.suffix.lower() not in FORMATS:
        raise ReportError(f"{path}: unknown kind of report; end the name in {', '.join(FORMATS)}")


def write(report: Report, path: Path) -> None:
    """Write a report in the format of the file's extension.

    Raises:
        ReportError: unknown extension, or the file cannot be written.
    """
    check_format(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FORMATS[path.suffix.lower()](report), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror or error}") from None


def slowest(report: Report, number: int = 10) -> list[Case]:
    """The cases that took longest."""
    cases = [case for part in report.parts for case in part.cases]
    return sorted(cases, key=lambda case: -case.seconds)[:number]


def case_title(case: Case) -> str:
    """A case's name with its target."""
    return f"{case.name} [{case.target}]" if case.target else case.name


def _bullets(report: Report) -> list[str]:
    counts = ", ".join(f"{number} {outcome}" for outcome, number in report.counts().items())
    return [*(_part_line(part) for part in report.parts), f"- cases: {counts}"]


def _part_line(part: Part) -> str:
    machine = part.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    targets = ", ".join(f"{name} ({detail})" for name, detail in machine.targets.items())
    return (
        f"- {targets}; {machine.os}, Python {machine.python}, {versions}; tree {machine.tree}; "
        f"{machine.started}, {machine.seconds:.0f} s"
    )


def _where(case: Case) -> str:
    return f"{case.place}: {case.message}" if case.place else case.message


def _cells(first: str, cells: list[str], sizes: list[int]) -> str:
    parts = (cell.ljust(size) for cell, size in zip(cells, sizes, strict=True))
    return f"{first}  {'  '.join(parts)}".rstrip()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"


def _pipe(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _bold(cell: str) -> str:
    return f"**{cell}**" if cell == FAIL else cell
