"""The command ``conformance``: finds its subcommand without loading the others."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from conformance import __version__

#: Subcommand, the module whose ``main(argv)`` runs it, and what it does.
COMMANDS = {
    "scan": ("conformance.scan.cli", "find code that works on one device only"),
    "simulate": ("conformance.simulate.cli", "run a program on the simulated MPS device"),
    "report": ("conformance.report_cli", "show the report of a conformance run"),
}


def _usage() -> str:
    listed = "".join(f"  {name:<10}{text}\n" for name, (_, text) in COMMANDS.items())
    return f"usage: conformance [--version] COMMAND ...\n\ncommands:\n{listed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit status, 2 for a request that cannot be met."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"conformance {__version__}\n")
        return 0
    if name not in COMMANDS:
        problem = f"unknown command {name!r}" if name else "a command is missing"
        sys.stderr.write(f"conformance: {problem}: expected {', '.join(COMMANDS)}\n")
        return 2
    module = COMMANDS[name][0]
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        sys.stderr.write(f"conformance {name}: needs {error.name}, which is not installed\n")
        return 2
    status: int = command.main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
