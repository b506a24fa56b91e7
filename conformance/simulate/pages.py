"""Writes a report as JSON, JUnit's XML, Markdown for a job's summary, or an HTML page."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from conformance.simulate.machine import REPORTED_NAME
from conformance.simulate.report import COUNTED, Report, ending, summary

_HEADINGS = {
    "refusals": "Refused, as a Mac would refuse it",
    "fallbacks": "Operators run on the host for want of a kernel",
    "transfers": "Transfers and waits",
    "operators": "Operators used",
}
_EXTRA = {"refusals": ("whose", "tests")}


def checked(path: Path) -> None:
    """Raises ValueError for a path that no report can be written to, before there is one."""
    if path.suffix not in WRITERS:
        names = " or ".join(f"*{suffix}" for suffix in sorted(WRITERS))
        raise ValueError(f"cannot write a report to {path}; name it {names}")
    there = path.exists()
    try:
        # Asked by doing it: permissions say nothing to an administrator, nor of a full disk.
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise ValueError(f"cannot write a report to {path}: {error.strerror}") from error
    if not there:
        path.unlink()


def write(report: Report, path: Path) -> None:
    """Writes `report` in the form of the path's suffix. Raises ValueError for any other."""
    checked(path)
    path.write_text(WRITERS[path.suffix](report), encoding="utf-8")


def _json(report: Report) -> str:
    return json.dumps(report, indent=2) + "\n"


def _tables(report: Report) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Heading, columns and rows of each part that has any."""
    for name, fields in COUNTED.items():
        columns = ["count", *fields, *_EXTRA.get(name, ())]
        rows = []
        for row in report[name]:
            cells = {
                **row,
                "whose": "the project's" if row.get("mistake") else "the Mac's",
                "tests": ", ".join(row.get("tests", [])),
            }
            rows.append([str(cells[column]) for column in columns])
        if rows:
            yield _HEADINGS[name], columns, rows


def markdown(report: Report) -> str:
    """The report for a job's summary: how it ended first, then the tables."""
    last = ending(report.get("status", 0))
    parts = [f"## {REPORTED_NAME}: no Mac was at work", *([f"**{last}**"] if last else [])]
    parts.append("```\n" + summary(report) + "\n```")
    for heading, columns, rows in _tables(report):
        table = [columns, ["---"] * len(columns), *rows[:50]]
        lines = "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in table)
        parts.append(f"### {heading}\n\n{lines}")
        if len(rows) > 50:
            parts.append(f"and {len(rows) - 50} more")
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def junit(report: Report) -> str:
    """One case for the run, one for each test, or for each refusal where no tests were followed."""
    suite = ElementTree.Element("testsuite", name=REPORTED_NAME)
    run = ElementTree.SubElement(suite, "testcase", classname=REPORTED_NAME, name="run")
    last = ending(report.get("status", 0))
    if last is not None:
        ElementTree.SubElement(run, "failure", message=last)
    for row in report.get("tests", []):
        file, _, name = row["test"].partition("::")
        case = ElementTree.SubElement(suite, "testcase", classname=file, name=name)
        if row["outcome"] == "failed":
            words = f"{row['operator'] or row['exception']} ({row['limit'] or 'no limit'})"
            ElementTree.SubElement(case, "failure", message=words).text = row["place"]
        elif row["outcome"] in ("skipped", "known"):
            ElementTree.SubElement(case, "skipped", message=row["outcome"])
    if not report.get("tests"):
        for row in report["refusals"]:
            case = ElementTree.SubElement(
                suite, "testcase", classname=row["limit"], name=f"{row['operator']} {row['place']}"
            )
            words = f"refused {row['count']} times"
            ElementTree.SubElement(case, "failure", message=words).text = row["place"]
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def page(report: Report) -> str:
    """The report as one HTML page, with nothing loaded from elsewhere."""
    parts = [
        "<!doctype html><meta charset='utf-8'>",
        f"<title>{REPORTED_NAME} report</title>",
        "<style>body{font:15px system-ui;margin:2em auto;max-width:70em}"
        "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;"
        "border-bottom:1px solid #ccc}</style>",
        f"<h1>What a real Mac would refuse, and what would be slow on it</h1>"
        f"<pre>{html.escape(summary(report))}</pre>",
        "<p>Simulated on the CPU: this counts what the program asked for; it measures no Mac.</p>",
    ]
    parts += [f"<p>{html.escape(note)}</p>" for note in report["notes"]]
    for heading, columns, rows in _tables(report):
        head = "".join(f"<th>{column}</th>" for column in columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        parts.append(f"<h2>{heading}</h2><table><tr>{head}</tr>{body}</table>")
    return "\n".join(parts) + "\n"


WRITERS: dict[str, Callable[[Report], str]] = {
    ".json": _json,
    ".xml": junit,
    ".md": markdown,
    ".html": page,
    ".htm": page,
}
