"""SARIF 2.1.0, as code-scanning pages read it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from conformance.scan import __version__
from conformance.scan.findings import Finding, Severity
from conformance.scan.judging.rules import RULES

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}
_ENGINE = {
    "DEV000": "A file could not be read or parsed.",
    "DEV001": "An ignore comment lacks its codes or its reason.",
    "DEV002": "An ignore comment silences nothing.",
}


def uri(path: str) -> str:
    """A file name as a URI reference, whatever bytes the name is made of."""
    text = quote(os.fsencode(path.replace(os.sep, "/")), safe="/~")
    if path.startswith("/"):
        return "file://" + text
    return text


def _rules() -> list[dict[str, Any]]:
    described: list[dict[str, Any]] = [
        {"id": code, "shortDescription": {"text": text}} for code, text in _ENGINE.items()
    ]
    described += [
        {
            "id": rule.code,
            "name": rule.name,
            "shortDescription": {"text": rule.summary},
            "fullDescription": {"text": rule.why},
            "help": {"text": rule.remedy, "markdown": f"{rule.why}\n\n**Fix.** {rule.remedy}"},
            "defaultConfiguration": {"level": _LEVELS[rule.severity]},
        }
        for rule in RULES
    ]
    return described


def _result(finding: Finding, occurrence: int, index: dict[str, int]) -> dict[str, Any]:
    identity = "\0".join((finding.code, finding.path, finding.scope, finding.text, str(occurrence)))
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
    return {
        "ruleId": finding.code,
        "ruleIndex": index[finding.code],
        "level": _LEVELS[finding.severity],
        "message": {"text": finding.message},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": uri(finding.path)},
                    "region": {
                        "startLine": finding.line,
                        "startColumn": finding.column,
                        "endLine": finding.end_line,
                        "endColumn": finding.end_column,
                    },
                }
            }
        ],
        "partialFingerprints": {"conformanceScan/v1": digest},
    }


def report(findings: Sequence[Finding]) -> str:
    """One run with every rule described and a stable fingerprint for each result."""
    rules = _rules()
    index = {rule["id"]: number for number, rule in enumerate(rules)}
    seen: Counter[tuple[str, str, str, str]] = Counter()
    results = []
    for finding in findings:
        identity = (finding.code, finding.path, finding.scope, finding.text)
        results.append(_result(finding, seen[identity], index))
        seen[identity] += 1
    log = {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "conformance-scan",
                        "version": __version__,
                        "rules": rules,
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": results,
            }
        ],
    }
    return json.dumps(log, indent=1) + "\n"
