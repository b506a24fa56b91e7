"""JUnit XML: a test case a finding, grouped by file, for CI servers that show test results."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from itertools import groupby

from conformance.scan.answering.report.text import place
from conformance.scan.findings import Finding

# XML 1.0 has no way at all to write these.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _attribute(text: str) -> str:
    cleaned = html.escape(_ILLEGAL.sub("\ufffd", text))
    # A parser turns raw line ends in an attribute into spaces.
    return '"' + cleaned.replace("\n", "&#10;").replace("\r", "&#13;").replace("\t", "&#9;") + '"'


def report(findings: Sequence[Finding]) -> str:
    """One suite a file; a clean run is one passing case, since an empty report counts as lost."""
    parts = ['<?xml version="1.0" encoding="UTF-8"?>\n']
    count = len(findings)
    parts.append(
        f'<testsuites name="conformance scan" tests="{max(count, 1)}" failures="{count}">\n'
    )
    for path, group in groupby(findings, key=lambda finding: finding.path):
        cases = list(group)
        parts.append(
            f"  <testsuite name={_attribute(path)} tests="
            f'"{len(cases)}" failures="{len(cases)}" errors="0">\n'
        )
        for finding in cases:
            name = f"{finding.code} line {finding.line} column {finding.column}"
            text = html.escape(_ILLEGAL.sub("\ufffd", f"{place(finding)}: {finding.message}"))
            parts.append(
                f"    <testcase name={_attribute(name)} classname={_attribute(path)}>\n"
                f"      <failure type={_attribute(finding.severity.label)}"
                f" message={_attribute(finding.message)}>{text}</failure>\n    </testcase>\n"
            )
        parts.append("  </testsuite>\n")
    if not findings:
        parts.append(
            '  <testsuite name="conformance scan" tests="1" failures="0" errors="0">\n'
            '    <testcase name="no findings" classname="conformance.scan"/>\n  </testsuite>\n'
        )
    parts.append("</testsuites>\n")
    return "".join(parts)
