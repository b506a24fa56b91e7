"""JSON report: a list of findings with plain fields."""

from __future__ import annotations

import json
from collections.abc import Sequence

from conformance.scan.findings import Finding


def report(findings: Sequence[Finding]) -> str:
    """A JSON array; lines and columns count from 1, end columns are exclusive."""
    rows = []
    for finding in findings:
        fix = None
        if finding.fix is not None:
            fix = {
                "safe": finding.fix.safe,
                "edits": [
                    {"start": edit.start, "end": edit.end, "text": edit.text}
                    for edit in finding.fix.edits
                ],
            }
        rows.append(
            {
                "path": finding.path,
                "line": finding.line,
                "column": finding.column,
                "end_line": finding.end_line,
                "end_column": finding.end_column,
                "code": finding.code,
                "severity": finding.severity.label,
                "message": finding.message,
                "scope": finding.scope,
                "cell": finding.cell or None,
                "fix": fix,
            }
        )
    return json.dumps(rows, indent=2) + "\n"
