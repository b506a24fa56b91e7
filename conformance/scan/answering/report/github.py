"""GitHub workflow commands: an annotation on each line."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.scan.answering.report.text import printable
from conformance.scan.findings import Finding, Severity

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def _data(text: str) -> str:
    """A message in which nothing can end the command and start another."""
    return printable(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def report(findings: Sequence[Finding]) -> str:
    """One workflow command a finding."""
    lines = []
    for finding in findings:
        where = (
            f"file={_property(finding.path)},line={finding.line},endLine={finding.end_line},"
            f"title={_property(finding.code)}"
        )
        if finding.line == finding.end_line:
            where += f",col={finding.column},endColumn={finding.end_column}"
        lines.append(
            f"::{_LEVELS[finding.severity]} {where}::{_data(f'{finding.code} {finding.message}')}\n"
        )
    return "".join(lines)
