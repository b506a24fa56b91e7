"""Tests of what the repository promises about itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    "acestep", "conformance", "tests", "tox.ini", "pyproject.toml", "constraints.txt",
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE",
}  # fmt: skip


def tracked() -> list[Path]:
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.skip("not a git checkout: the files of an unpacked archive are not listed")
    return [Path(line) for line in run.stdout.splitlines() if (ROOT / line).is_file()]


def test_acestep_never_names_cuda_outside_the_policy() -> None:
    pattern = re.compile(r"torch\.cuda|\.cuda\(|is_cuda")
    for path in tracked():
        if path.parts[0] == "acestep" and path.suffix == ".py":
            text = (ROOT / path).read_text(encoding="utf-8")
            assert not pattern.search(text), path


def test_top_level() -> None:
    names = {path.parts[0] for path in tracked() if not path.parts[0].startswith(".")}
    assert names == TOP_LEVEL


def test_every_module_says_what_it_is_for() -> None:
    for path in tracked():
        if path.suffix == ".py" and path.parts[0] in ("acestep", "conformance"):
            text = (ROOT / path).read_text(encoding="utf-8").lstrip()
            assert text.startswith(('"""', "#!", "r'''", 'r"""')), path


def test_ci_runs_the_readme_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in readme.splitlines() if "pytest" in line and "pip install" in line]
    assert len(commands) == 1
    assert commands[0].strip() in ci


def test_what_tox_runs_is_there() -> None:
    """pytest ends at once where a path is gone, before it has run anything."""
    told = (ROOT / "tox.ini").read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w./-])tests/[\w/.-]+", told)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
