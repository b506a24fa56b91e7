"""``python -m conformance.scan``: the scanner without the rest of the command."""

from __future__ import annotations

import sys

from conformance.scan.cli import main

if __name__ == "__main__":
    sys.exit(main())
