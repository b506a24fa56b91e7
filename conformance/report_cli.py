"""`conformance report`: shows reports of the suite, and merges those of several machines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from conformance.report import ReportError, from_json, merge
from conformance.report_pages import check_format, text_lines, write


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="conformance report",
        description="Show JSON reports of `pytest conformance --conformance-report FILE.json`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{show,merge}")
    show = commands.add_parser("show", help="print the matrix of one report")
    show.add_argument("reports", nargs=1, type=Path, metavar="FILE", help="a JSON report")
    both = commands.add_parser("merge", help="put reports of several machines side by side")
    both.add_argument("reports", nargs="+", type=Path, metavar="FILE", help="JSON reports")
    for command in (show, both):
        command.add_argument("-o", "--output", type=Path, help="write .md, .json or .html instead")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when nothing failed, 1 when the reports hold failures, 2 for a request that cannot
        be met (one line on stderr).
    """
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.output is not None:
            check_format(arguments.output)
        report = merge(from_json(path) for path in arguments.reports)
        if arguments.output is None:
            sys.stdout.write("\n".join(text_lines(report)) + "\n")
        else:
            write(report, arguments.output)
    except ReportError as error:
        sys.stderr.write(f"conformance report: error: {error}\n")
        return 2
    return 1 if report.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
