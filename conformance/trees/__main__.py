"""`python -m conformance.trees CHECKOUT …`: asks checkouts the facts, and puts them side by side.

A checkout is a folder, or a repository with a commit of it as `FOLDER@COMMIT`; `NAME=` before it
gives it a shorter name in the table. Nothing is written into any of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from conformance.pytest_entry import SUITE
from conformance.report import Report, ReportError, from_json
from conformance.report_facts import facts
from conformance.trees.checkouts import CheckoutError, export


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when every checkout could be asked, 1 when one could not, 2 for a request that cannot
        be met.
    """
    parser = argparse.ArgumentParser(prog="python -m conformance.trees", description=__doc__)
    parser.add_argument("checkouts", nargs="+", metavar="[NAME=]FOLDER[@COMMIT]")
    parser.add_argument("--device", default="cpu,mps-sim", help="targets (default: %(default)s)")
    parser.add_argument("--reports", type=Path, help="folder for each one's .json and .html")
    given = parser.parse_args(argv)
    found: dict[str, Report | None] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, asked in enumerate(given.checkouts):
            try:
                name, tree = _tree(asked, Path(scratch) / str(number))
            except CheckoutError as error:
                sys.stderr.write(f"conformance.trees: error: {error}\n")
                return 2
            folder = given.reports or Path(scratch)
            found[name] = _asked(name, tree, given.device, folder)
    sys.stdout.write("\n".join(table(found)) + "\n")
    return 0 if all(found.values()) else 1


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
    shown = ", ".join(place.removeprefix("acestep/") for place in places if place)
    return f"{said}: {shown}" if shown else said


def _tree(asked: str, scratch: Path) -> tuple[str, Path]:
    name, equals, where = asked.partition("=")
    name, where = (name, where) if equals else (Path(asked).name, asked)
    folder, at, commit = where.rpartition("@")
    if not at:
        return name, Path(where)
    export(Path(folder), commit, scratch)
    return name, scratch


def _asked(name: str, tree: Path, device: str, folder: Path) -> Report | None:
    """The report of one run in a process of its own; None where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    report = (folder / f"{name}.json").absolute()
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", str(SUITE), "-p", "conformance.plugin", "-q"]
    command += [f"--tree={tree}", f"--device={device}", "-p", "no:cacheprovider"]
    command += [f"--rootdir={folder}", f"--conformance-report={report}"]
    package = str(SUITE.parent.parent)
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    started = time.monotonic()
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stderr.write(f"{name}: {time.monotonic() - started:.0f} s\n")
    try:
        read = from_json(report)
    except ReportError:
        sys.stderr.write(f"{name}: no report; {(done.stdout + done.stderr)[-2000:]}\n")
        return None
    from conformance.report_pages import write

    write(read, report.with_suffix(".html"))
    return read


if __name__ == "__main__":
    sys.exit(main())
