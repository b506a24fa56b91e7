#!/usr/bin/env python3
"""Runs the scanner from a checkout, with nothing installed: the entry of the pre-commit hook."""

from __future__ import annotations

import os
import sys

# The checkout, not this folder: a module here must not stand in for one of the library.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main() -> int:
    """Scan the files named on the command line; returns the scanner's exit status."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the machine's own Python runs this
        sys.stderr.write("conformance scan: needs Python 3.11 or later to run\n")
        return 2
    from conformance.scan.cli import main as scan

    return scan(["--quiet", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
