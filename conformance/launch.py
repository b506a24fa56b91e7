"""Runs a module of the tree under test in a process of its own, with the tripwire armed there.

`python -m conformance.launch [options] MODULE [ARGUMENT ...]` behaves as
`python -m MODULE [ARGUMENT ...]` would, and leaves what it noticed in a file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import runpy
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from conformance.entrypoints import survey
from conformance.targets import Target, find
from conformance.tree import Tree, child_environment, install, locate


@dataclass(frozen=True)
class Launched:
    """What a run in its own process gave.

    Attributes:
        status: the exit status.
        output: what it wrote to stdout.
        errors: what it wrote to stderr.
        touches: the tree's touches of CUDA, a line each.
        surface: for a survey, the public callables and the modules that cannot be imported.
    """

    status: int
    output: str
    errors: str
    touches: list[str]
    surface: dict[str, Any]


def launch(
    tree: Tree,
    target: Target,
    module: str | None,
    arguments: Sequence[str] = (),
    *,
    folder: Path | None = None,
    timeout: float = 120.0,
) -> Launched:
    """Run a module of a tree on a target; without a module, import all and list what is public.

    Args:
        tree: the tree under test; no other `acestep` is seen.
        target: the device to be present; on CUDA nothing is forbidden.
        module: full name of the module to run as a program.
        arguments: its arguments.
        folder: the current folder of the process; by default an empty one.
        timeout: seconds until it is killed.
    """
    with TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.json"
        command = [sys.executable, "-m", "conformance.launch", "--tree", str(tree.root)]
        command += ["--target", target.name, "--log", str(log)]
        command += ["--survey"] if module is None else [module, *arguments]
        done = subprocess.run(
            command,
            cwd=folder or scratch,
            env=child_environment(tree),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        found = json.loads(log.read_text()) if log.is_file() else {"touches": [], "surface": {}}
    return Launched(done.returncode, done.stdout, done.stderr, found["touches"], found["surface"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the module named on the command line; leaves by its exit status."""
    parser = argparse.ArgumentParser(prog="python -m conformance.launch", description=__doc__)
    parser.add_argument("--tree", required=True, help="root of the tree")
    parser.add_argument("--target", default="cpu", help="device to be present")
    parser.add_argument("--log", type=Path, required=True, help="where to leave what was noticed")
    parser.add_argument("--survey", action="store_true", help="import everything, list it")
    parser.add_argument("module", nargs="?", help="module to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args(argv)
    tree, target = locate(given.tree), find()[given.target]
    install(tree)
    log: dict[str, Any] = {"touches": [], "surface": {}}
    with ExitStack() as stack:
        stack.enter_context(target.activate())
        stack.callback(lambda: given.log.write_text(json.dumps(log)))
        if not target.may_use_cuda:
            stack.enter_context(_watching(tree, log))
        if given.survey:
            log["surface"] = _survey(tree)
        else:
            sys.argv = [given.module, *given.arguments]
            runpy.run_module(given.module, run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def _watching(tree: Tree, log: dict[str, Any]) -> Any:
    from conformance.tripwire import Tripwire

    with Tripwire(tree.package) as wire:
        try:
            yield
        finally:
            log["touches"] = [touch.describe(tree.root) for touch in wire.failures]


def _survey(tree: Tree) -> dict[str, Any]:
    found = survey(tree)
    return {"callables": sorted(found.callables), "unimportable": found.unimportable}


if __name__ == "__main__":
    main()
