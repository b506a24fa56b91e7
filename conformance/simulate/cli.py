"""The command `conformance simulate mps [options] -- python script.py ...`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conformance.simulate import pages, report
from conformance.simulate.hook import DEBUG_VARIABLE, REPORTS_VARIABLE, hand_down
from conformance.simulate.machine import BACKEND, Machine

_INTERPRETERS = ("python", "python3")
_DESCRIPTION = (
    "Run a Python program, and the processes it starts, with a device that says it is mps, "
    "computes on the CPU and fails where MPS fails."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `simulate` to a parser."""
    _add_options(parser)
    parser.add_argument("device", choices=[BACKEND], help="the device to simulate")
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        help="after --: [python] script.py args, [python] -m module args, or any command that runs "
        "Python, such as a console script",
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--macos", default="15.5", help="macOS version to stand for (15.5)")
    parser.add_argument(
        "--torch", help="an older torch to stand for, such as 2.12: what it lacks is missing"
    )
    parser.add_argument("--memory-gb", type=float, default=16, help="unified memory in GiB (16)")
    parser.add_argument("--ratchet", action="store_true", help="keep freed blocks, as the driver")
    parser.add_argument(
        "--start-method",
        choices=("spawn", "fork"),
        default="spawn",
        help="how multiprocessing and DataLoader start workers where the program does not say: "
        "spawn, as macOS does, or fork, as Linux does",
    )
    parser.add_argument(
        "--debug", action="store_true", help="keep the simulation's own frames in tracebacks"
    )
    parser.add_argument(
        "--report",
        type=Path,
        action="append",
        default=[],
        help="write a report to this file: .json, .html, .md, or .xml for JUnit; may be repeated",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the subcommand from its arguments; returns the exit status."""
    parser = argparse.ArgumentParser(prog="conformance simulate", description=_DESCRIPTION)
    configure(parser)
    return run(parser.parse_args(arguments))


def run(args: argparse.Namespace) -> int:
    """Runs the command under simulation and returns its exit status; 2 for a wrong request."""
    words = list(args.command)
    # Options may stand between the device and the command, where argparse reads none.
    edge = words.index("--") if "--" in words else 0
    if not edge and words and words[0].startswith("-") and words[0] not in ("--", "-m", "-c"):
        edge = len(words)
    if edge:
        options = argparse.ArgumentParser(
            prog="conformance simulate mps",
            usage="%(prog)s [options] -- [python] script.py ...",
            description=_DESCRIPTION,
        )
        _add_options(options)
        options.parse_args(words[:edge], namespace=args)
    command = words[edge + 1 :] if "--" in words else words[edge:]
    try:
        if not command:
            raise ValueError("no command given; write: conformance simulate mps -- python x.py")
        _machine(args)
        for path in args.report:
            pages.checked(path)
    except ValueError as error:
        print(f"conformance simulate: {error}", file=sys.stderr)  # noqa: T201
        return 2
    with tempfile.TemporaryDirectory() as folder:
        try:
            status = _child(located(command), args, Path(folder))
        except OSError as error:
            print(f"conformance simulate: cannot run {command[0]}: {error}", file=sys.stderr)  # noqa: T201
            return 2
        if args.report:
            _report(Path(folder), status, args)
    return status


def _machine(args: argparse.Namespace) -> Machine:
    """The Mac to stand for. Raises ValueError where the options name none."""
    return Machine(args.macos, args.memory_gb, torch=args.torch)


def located(command: list[str]) -> list[str]:
    """The command as it is started: this Python for `-m`, `-c` and scripts, as coverage run does.

    A console script on no PATH is looked for beside this Python, where its environment has it.
    """
    first, *rest = command
    if first in _INTERPRETERS:
        return [sys.executable, *rest]
    if first in ("-m", "-c") or (first.endswith(".py") and Path(first).is_file()):
        return [sys.executable, *command]
    beside = str(Path(sys.executable).parent)
    found = shutil.which(first) or shutil.which(first, path=beside)
    return command if found is None else [found, *rest]


def _child(command: list[str], args: argparse.Namespace, folder: Path) -> int:
    options: dict[str, Any] = {
        "macos": args.macos,
        "torch": args.torch,
        "memory_gb": args.memory_gb,
        "ratchet": args.ratchet,
        "start": args.start_method,
    }
    put_back = hand_down(options)
    environment = {**os.environ, REPORTS_VARIABLE: str(folder)}
    put_back()
    if args.debug:
        environment[DEBUG_VARIABLE] = "1"
    status = subprocess.run(command, env=environment, check=False).returncode
    return status if status >= 0 else 128 - status


def _report(folder: Path, status: int, args: argparse.Namespace) -> None:
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    if not parts:
        # Nothing ran on the device: an empty report says so, rather than an old file.
        parts = [report.empty(_machine(args))]
    tests: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.tests")):
        tests += json.loads(path.read_text(encoding="utf-8"))
    merged = report.completed(report.merge(parts), status, tests)
    for path in args.report:
        pages.write(merged, path)
    print(report.summary(merged), file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
