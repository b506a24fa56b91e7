"""`python -m conformance.trees CHECKOUT …`: asks checkouts the facts, and puts them side by side.

A checkout is a folder, or a repository with a commit of it as `FOLDER@COMMIT`; `NAME=` before it
gives it a shorter name in the table. Nothing is written into any of them. `--change` takes two,
before and after a change, and tells what that breaks and what it mends, by suite and scanner.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from conformance.report import Report
from conformance.report_facts import facts
from conformance.scan.errors import ConfigError
from conformance.trees import change
from conformance.trees.checkouts import CheckoutError, opened
from conformance.trees.running import asked
from conformance.trees.scratch import lent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when every checkout could be asked, and a change breaks nothing; 1 when not; 2 for a
        request that cannot be met.
    """
    parser = argparse.ArgumentParser(prog="python -m conformance.trees", description=__doc__)
    parser.add_argument("checkouts", nargs="+", metavar="[NAME=]FOLDER[@COMMIT]")
    parser.add_argument("--device", default="cpu,mps-sim", help="targets (default: %(default)s)")
    parser.add_argument("--reports", type=Path, help="folder for each one's .json and .html")
    parser.add_argument(
        "--change", action="store_true", help="two checkouts: what is new and what is fixed"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table here as well")
    given = parser.parse_args(argv)
    if given.change and len(given.checkouts) != 2:
        parser.error(f"--change takes two checkouts, base and head, not {len(given.checkouts)}")
    found: list[tuple[str, Path, Report | None]] = []
    with lent() as scratch:
        try:
            trees = [
                opened(text, scratch / str(number)) for number, text in enumerate(given.checkouts)
            ]
            names = ("base", "head") if given.change else [name for name, _ in trees]
            folder = given.reports or scratch / "reports"
            for name, (_, tree) in zip(names, trees, strict=True):
                found.append((name, tree, asked(name, tree, given.device, folder)))
            if given.change:
                lines, status = _changed(*found)
            else:
                lines = table({name: report for name, _, report in found})
                status = 0 if all(report for _, _, report in found) else 1
        except (CheckoutError, ConfigError) as error:
            sys.stderr.write(f"conformance.trees: error: {error}\n")
            return 2
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if given.output is not None:
        given.output.write_text(text, encoding="utf-8")
    return status


def table(found: dict[str, Report | None]) -> list[str]:
    """The facts of several trees as a Markdown table, each verdict with its place."""
    rows: dict[str, dict[str, str]] = {}
    for name, report in found.items():
        for fact in facts(report) if report is not None else ():
            rows.setdefault(f"{fact.id} {fact.title}", {})[name] = _cell(fact.verdicts, fact.lines)
    lines = ["| |" + "".join(f" {name} |" for name in found)]
    lines.append("| --- |" + " --- |" * len(found))
    lines += [
        f"| {row} |" + "".join(f" {cells.get(name, 'not asked')} |" for name in found)
        for row, cells in rows.items()
    ]
    return lines


def _cell(verdicts: dict[str, str], lines: Sequence[object]) -> str:
    alike = len(set(verdicts.values())) == 1
    said = (
        next(iter(verdicts.values()))
        if alike
        else ", ".join(f"{verdict} on {device}" for device, verdict in verdicts.items())
    )
    bad = [line for line in lines if getattr(line, "outcome", "") not in ("pass", "absent")]
    places = dict.fromkeys(str(getattr(line, "place", "")) for line in bad)
    # What one device stumbles over first may be but the first line on another.
    whole = [p for p in places if p and not any(q.startswith(f"{p} and ") for q in places)]
    shown = ", ".join(place.removeprefix("acestep/") for place in whole)
    return f"{said}: {shown}" if shown else said


def _changed(
    base: tuple[str, Path, Report | None], head: tuple[str, Path, Report | None]
) -> tuple[list[str], int]:
    """The table of a change, and whether something is wrong since base."""
    before, after = change.findings(base[1]), change.findings(head[1])
    rows, notes = change.of_scanner(before, after), []
    for name, _, report in (base, head):
        if report is None:
            notes.append(f"**The suite could not be run on {name}.**")
    if base[2] is not None and head[2] is not None:
        kept = len(after) - sum(row.kind == change.NEW for row in rows)
        rows += change.of_suite(base[2], head[2])
        notes.append(change.unchanged(base[2], head[2], kept))
    wrong = head[2] is None or any(row.kind in (change.NEW, change.CHANGED) for row in rows)
    return change.page(rows, notes).splitlines(), int(wrong)


if __name__ == "__main__":
    sys.exit(main())
