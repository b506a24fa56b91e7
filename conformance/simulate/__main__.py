"""``python -m conformance.simulate``: the simulated device without the rest of the command."""

from __future__ import annotations

import sys

from conformance.simulate.cli import main

if __name__ == "__main__":
    sys.exit(main())
