"""What tests of the suite share: copies of the tree to spoil, and quick runs of the suite on them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SUITE = REPOSITORY / "conformance" / "suite"
SERVER = Path(__file__).with_name("suite_server.py")


@dataclass(frozen=True)
class SuiteRun:
    """One finished run of the suite.

    Attributes:
        status: pytest's exit status.
        log: what it printed.
        report: its JSON report, or None where it ended before there was one.
    """

    status: int
    log: str
    report: dict[str, Any] | None

    @property
    def cases(self) -> list[dict[str, Any]]:
        """All cases of the report."""
        parts = self.report["parts"] if self.report else []
        return [case for part in parts for case in part["cases"]]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The cases that failed."""
        return [case for case in self.cases if case["outcome"] == "fail"]

    def cell(self, row: str, column: int = 0) -> str:
        """What the matrix says of a row."""
        assert self.report is not None, self.log
        return str(self.report["matrix"]["rows"][row][column])


RunSuite = Callable[..., SuiteRun]


@pytest.fixture(scope="session")
def run_suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunSuite]:
    """Runs the suite as `run_suite(*cases, tree=…, device=…, suite=…)`, each in a fresh fork."""
    folder = tmp_path_factory.mktemp("suite")
    log, report, temporary = folder / "log.txt", folder / "report.json", folder / "tmp"
    temporary.mkdir()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "SUITE_LOG": str(log)}
    # Where no other run sweeps up what is left of these.
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    for name in [n for n in environment if n.startswith(("PYTEST_", "COVERAGE_", "COV_"))]:
        del environment[name]
    server = subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=folder,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def run(
        *cases: str,
        tree: Path | None = None,
        device: str = "cpu",
        suite: Path = SUITE,
        **options: Any,
    ) -> SuiteRun:
        report.unlink(missing_ok=True)
        arguments = [str(suite / case) for case in cases] + [f"--device={device}", "-q"]
        arguments += [
            "--assert=plain",
            "--tb=native",
            "-p",
            "no:cacheprovider",
            "-p",
            "conformance.plugin",
            "-p",
            "no:xdist",
        ]
        arguments += [f"--rootdir={folder}", f"--conformance-report={report}", "-W", "error"]
        arguments += [f"--tree={tree}"] if tree is not None else []
        arguments += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        asked = json.dumps({"arguments": arguments, "suite": str(suite)})
        server.stdin.write(asked + "\n")  # type: ignore[union-attr]
        server.stdin.flush()  # type: ignore[union-attr]
        status = int(server.stdout.readline())  # type: ignore[union-attr]
        made = json.loads(report.read_text()) if report.is_file() else None
        return SuiteRun(status, log.read_text(errors="replace"), made)

    yield run
    server.stdin.close()
    server.wait(timeout=30)
    server.stdout.close()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The root of a copy of this repository's `acestep`, free to be edited."""
    root = tmp_path / "tree"
    # With their bytecode, which holds for every file that is not edited.
    ignored = shutil.ignore_patterns("weights")
    shutil.copytree(REPOSITORY / "acestep", root / "acestep", ignore=ignored)
    weights = Path("acestep", "demo", "weights")
    (root / weights).symlink_to(REPOSITORY / weights)
    return root
