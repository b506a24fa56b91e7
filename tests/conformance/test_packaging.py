"""Both ways to install the gate: as a package by itself, and with the repository's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from email.parser import HeaderParser
from pathlib import Path

import pytest

import acestep
import conformance

ROOT = Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".git", ".venv", "*.pyc", "tests", ".*_cache")
BAD = "import torch\ntorch.cuda.synchronize()\n"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a checkout, in a folder of their own."""
    target = tmp_path_factory.mktemp("fresh") / "clone"
    shutil.copytree(ROOT, target, ignore=_LEFT_OUT)
    return target


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Installs a folder as pip does, offline and without what it depends on."""

    def run(folder: str) -> Path:
        site = tmp_path_factory.mktemp("site")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        command += ["--no-build-isolation", "--no-compile", "--target", str(site), folder]
        subprocess.run(command, check=True, capture_output=True, cwd=site)
        return site

    return run


@pytest.fixture(scope="module")
def alone(clone: Path, install: Callable[[str], Path]) -> Path:
    """Where the package by itself was installed."""
    return install(f"{clone / 'conformance'}[scan]")


def files(site: Path) -> set[str]:
    found = (site / "conformance").rglob("*")
    return {p.relative_to(site).as_posix() for p in found if p.is_file() and p.suffix != ".pyc"}


def bare(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs this Python with nothing but its library and what lies in ``site``."""
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_alone_it_needs_nothing_but_python(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    script = alone / "bin" / "conformance"
    done = bare(alone, str(script), "scan", "bad.py", cwd=tmp_path)
    assert (done.returncode, done.stdout.split(": ")[0]) == (1, "bad.py:2:1"), done.stderr
    assert bare(alone, "-m", "conformance", "--version", cwd=tmp_path).stdout == (
        f"conformance {conformance.__version__}\n"
    )


def test_both_ways_bring_the_same_files(
    clone: Path, alone: Path, install: Callable[[str], Path]
) -> None:
    together = install(str(clone))
    assert (together / "acestep" / "__init__.py").is_file()
    assert files(alone) == files(together)
    assert "conformance/scan/hook.py" in files(alone)
    for site in (alone, together):
        assert (site / "bin" / "conformance").is_file()


def test_one_version_and_the_extras_that_are_promised(alone: Path) -> None:
    (info,) = alone.glob("conformance-*.dist-info")
    said = HeaderParser().parsestr((info / "METADATA").read_text(encoding="utf-8"))
    own = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert said["Version"] == conformance.__version__ == acestep.__version__ == own["version"]
    assert said.get_all("Provides-Extra") == ["configs", "scan", "simulate", "suite"]
    needed = said.get_all("Requires-Dist") or []
    assert all("extra ==" in line for line in needed)
    assert not [line for line in needed if "extra == 'scan'" in line]
    # In a fork's environment the suite must not exchange what the fork has pinned.
    suite = sorted(line.partition(";")[0] for line in needed if "extra == 'suite'" in line)
    assert suite == ["hypothesis", "numpy", "pytest>=8.4", "soundfile", "torch"]


def test_no_plugin_is_forced_on_whoever_runs_pytest(alone: Path) -> None:
    (info,) = alone.glob("conformance-*.dist-info")
    points = (info / "entry_points.txt").read_text(encoding="utf-8")
    assert points == "[console_scripts]\nconformance = conformance.cli:main\n"
