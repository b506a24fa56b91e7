"""Draws the samples from which precision and recall are judged by reading.

``python -m conformance.scan.proving.study findings --seed 1 --count 200 PATH...`` prints findings drawn at
random with their surroundings; ``missed`` prints occurrences of ``cuda`` that no finding covers.
Both take every finding, notes included or not, of the given paths; ``--json`` prints rows to judge.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from conformance.scan.config import Config
from conformance.scan.findings import Finding, Severity
from conformance.scan.reading.discover import Target, discover
from conformance.scan.reading.source import SourceError, decode, split_lines
from conformance.scan.runner import scan

_WORD = "cuda"


def draw_findings(findings: Sequence[Finding], seed: int, count: int) -> list[Finding]:
    """As many findings at random as asked for (or all), in order of place."""
    chosen = random.Random(seed).sample(list(findings), min(count, len(findings)))
    return sorted(chosen, key=lambda finding: finding.sort_key)


def occurrences(targets: Sequence[Target], findings: Sequence[Finding]) -> list[tuple[Target, int]]:
    """Lines that say ``cuda`` and that no finding covers."""
    covered: dict[str, set[int]] = {}
    for finding in findings:
        lines = covered.setdefault(finding.path, set())
        lines.update(range(finding.line, max(finding.end_line, finding.line) + 1))
    found = []
    for target in targets:
        try:
            text = decode(Path(target.path).read_bytes())[0]
        except (OSError, SourceError):
            continue
        held = covered.get(target.shown, set())
        found += [
            (target, number)
            for number, line in enumerate(split_lines(text), 1)
            if _WORD in line.lower() and number not in held
        ]
    return found


def _around(path: str, line: int, width: int) -> list[str]:
    lines = split_lines(decode(Path(path).read_bytes())[0])
    first = max(0, line - 1 - width)
    return [
        f"    {'>' if index == line - 1 else ' '} {lines[index][:150]}"
        for index in range(first, min(len(lines), line + width))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a sample; returns 0."""
    parser = argparse.ArgumentParser(
        "python -m conformance.scan.proving.study", description=__doc__
    )
    parser.add_argument("what", choices=("findings", "missed"))
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--context", type=int, default=2)
    parser.add_argument("--notes", action="store_true", help="draw from notes as well")
    parser.add_argument("--json", action="store_true", help="rows without surroundings")
    options = parser.parse_args(argv)
    config = Config(Path.cwd(), cache=False, severity=Severity.NOTE).checked()
    targets = discover(options.paths, config)
    findings = scan(targets, config).findings
    paths = {target.shown: target.path for target in targets}
    out = sys.stdout.write
    if options.what == "missed":
        every = occurrences(targets, findings)
        chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
        for target, line in sorted(chosen, key=lambda item: (item[0].shown, item[1])):
            if options.json:
                out(json.dumps({"path": target.shown, "line": line}) + "\n")
            else:
                surroundings = "\n".join(_around(target.path, line, options.context))
                out(f"{target.shown}:{line}\n{surroundings}\n")
        return 0
    if not options.notes:
        findings = [finding for finding in findings if finding.severity > Severity.NOTE]
    for finding in draw_findings(findings, options.seed, options.count):
        if options.json:
            row = replace(finding, source=())
            names = ("path", "line", "code", "message")
            shown = {name: getattr(row, name) for name in names}
            out(json.dumps({**shown, "severity": row.severity.label}) + "\n")
        else:
            surroundings = "\n".join(_around(paths[finding.path], finding.line, options.context))
            head = f"{finding.path}:{finding.line} {finding.code} {finding.severity.label}"
            out(f"{head} {finding.message} [{finding.scope}]\n{surroundings}\n")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
