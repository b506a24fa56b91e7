"""Beside other projects: our pytest plugins leave their runs, and their options, alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--device", action="store", dest="device", default="cpu")
    parser.addoption("--tree", action="store")
"""
TESTS = """
import sys
def test_their_own_option(request):
    assert request.config.getoption("device") == "tpu"
    assert "torch" not in sys.modules
    assert "conformance.plugin" not in sys.modules
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # As the entry point loads it, whatever this environment has installed.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conformance.pytest_entry", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_project_with_options_of_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_theirs.py").write_text(TESTS)
    done = run(tmp_path, "--device=tpu")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["conformance", "own"])
def test_the_suite_runs_by_its_name_only(name: str, tmp_path: Path) -> None:
    if name == "own":
        (tmp_path / "own").mkdir()
    done = run(tmp_path, name, "--device=cpu", "--collect-only", "-k", "tier")
    if name == "conformance":
        assert "test_memory.py::test_tiers" in done.stdout, done.stdout + done.stderr
    else:
        assert "unrecognized arguments: --device=cpu" in done.stderr
