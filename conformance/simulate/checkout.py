"""Runs the device-generic cases of a PyTorch checkout's own MPS tests under the simulation.

They are the cases that PyTorch writes for every device and makes for MPS in `test/test_mps.py`;
those that speak of Metal alone are left out. This module is also the pytest plugin that picks them.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.simulate.foreign import Comparison, Reason, Result, results

if TYPE_CHECKING:
    import pytest

FAILS_ON_MACS = "listed as failing on Macs, and runs here"
OTHER_WORDS = "refused in other words than PyTorch expects"

_FILE = Path("test") / "test_mps.py"
_REASONS = (
    Reason("", r"Unexpected success", FAILS_ON_MACS, "missing there, or of other values"),
    Reason("", r'AssertionError: ".*" does not match "', OTHER_WORDS, "by test"),
)
_STAND_IN = "import unittest\n\nTestCase = unittest.TestCase\n"
"""What torch's test helpers need of expecttest, where that is not installed."""
_TAIL = 400


def test_file(checkout: Path) -> Path:
    """The MPS tests of a checkout. Raises ValueError, in one line, where it has none."""
    path = checkout / _FILE
    if not path.is_file():
        raise ValueError(
            f"no {_FILE} in {checkout}: expected a checkout of https://github.com/pytorch/pytorch "
            "at the release that is installed"
        )
    return path.resolve()


def run(checkout: Path, count: int | None, seed: int, expression: str = "") -> list[str]:
    """Runs a checkout's cases, and says in lines how many ended as PyTorch expects.

    `count` picks so many of them at random; `expression` is pytest's `-k`. Raises ValueError for
    a folder without that file, RuntimeError where pytest wrote no result.
    """
    path = test_file(checkout)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        junit, settings = scratch / "junit.xml", scratch / "pytest.ini"
        # The checkout's own settings and conftest ask for plugins of its continuous integration.
        settings.write_text("[pytest]\n", encoding="utf-8")
        command = [sys.executable, "-m", "conformance", "simulate", "mps", "--"]
        command += [sys.executable, "-m", "pytest", str(path), "-q", "--tb=short", "-k", expression]
        command += ["-p", __name__, "-p", "no:cacheprovider", "--noconftest", "-c", str(settings)]
        command += ["--rootdir", str(path.parent), f"--junitxml={junit}"]
        command += ["--mps-cases", str(-1 if count is None else count), "--mps-seed", str(seed)]
        done = subprocess.run(
            command,
            cwd=path.parent,
            env=_environment(scratch),
            capture_output=True,
            text=True,
            check=False,
        )
        if not junit.exists():
            raise RuntimeError(
                f"the tests of {path} wrote no result (exit {done.returncode}): "
                f"{(done.stdout + done.stderr)[-_TAIL:].strip()}"
            )
        return lines(path, results(junit))


def _environment(scratch: Path) -> dict[str, str]:
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    known = sys.modules.get("expecttest")
    # This process may have made itself a stand-in, which has no spec.
    spec = importlib.util.find_spec("expecttest") if known is None else known.__spec__
    if spec is None:
        (scratch / "expecttest.py").write_text(_STAND_IN, encoding="utf-8")
        paths.append(str(scratch))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }


def lines(path: Path, found: dict[str, Result]) -> list[str]:
    """How the cases ended, and why those failed that PyTorch does not expect to."""
    ways = Counter(result.outcome for result in found.values())
    right = ways["passed"] + ways["xfailed"]
    ran = right + ways["failed"]
    said = [
        f"cases of {path}: {ran} ran, agreement {right / max(ran, 1):.1%} ({ways['passed']} "
        f"passed, {ways['xfailed']} failed as expected, {ways['failed']} did not; "
        f"{ways['skipped']} skipped)"
    ]
    compared = Comparison({}, found, _REASONS)
    for (kind, why), tests in sorted(compared.changed.items(), key=lambda row: -len(row[1])):
        said.append(f"{len(tests):>6}  {kind}: {why}")
        said.append(f"        {tests[0]}" + (" and others" if len(tests) > 1 else ""))
    return said


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many of the cases to run."""
    parser.addoption("--mps-cases", type=int, default=-1)
    parser.addoption("--mps-seed", type=int, default=0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the cases that PyTorch makes of tests for every device, or so many of them."""
    kept = [item for item in items if hasattr(getattr(item, "cls", None), "device_type")]
    count = config.getoption("--mps-cases")
    if 0 <= count < len(kept):
        kept = random.Random(config.getoption("--mps-seed")).sample(kept, count)
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]
