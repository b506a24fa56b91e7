"""Pytest on the simulated device: a whole run by `--mps-sim`, and what it says of each test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from conformance import simulate
from conformance.simulate import outcomes, pytest_plugin, session
from conformance.simulate.known import Failure, Known

pytest_plugins = ["pytester"]

CONFTEST = """
import torch
DEVICES = ["cpu"] + (["mps"] if torch.backends.mps.is_available() else [])
def pytest_addoption(parser):
    parser.addoption("--device", dest="device")
"""
TESTS = """
import pytest, torch, warnings
from conftest import DEVICES
each = pytest.mark.parametrize("device", DEVICES)

@each
def test_runs(device):
    assert (torch.ones(2, device=device) * 2).sum() == 4
@each
def test_nothing(device):
    assert torch.ones(2).sum() == 2
@each
def test_eigh(device):
    torch.linalg.eigh(torch.eye(2, device=device))
@each
def test_mixed(device):
    torch.ones(2, device=device) + torch.ones(2)
def test_named():
    torch.device("mps")
def test_own():
    assert 1 == 2
@pytest.mark.mps_sim(macos="14.1")
def test_marked():
    pass
def test_fixture(mps_sim):
    assert mps_sim.machine.macos == "15.5"
"""
LOADED = (pytest_plugin, session)
"""Loaded before a run inside this one, which forgets what it loads itself."""
EIGH = "aten::_linalg_eigh.eigenvalues"


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Another project, whose conftest asks for devices and has a `--device` of its own."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv(
        "PYTEST_ADDOPTS", "-p conformance.simulate.pytest_plugin -p no:cacheprovider"
    )
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TESTS)
    return pytester


def test_a_whole_run(project: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    before = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_C")}
    before.pop("PYTEST_VERSION", None)
    ran = project.inline_run("--mps-sim", "--device=x")
    assert ran.countoutcomes() == [8, 0, 4]
    text = capsys.readouterr().out
    assert (
        f"     1  {EIGH} (missing-operator): a limit of the Mac\n        at test_it.py:13" in text
    )
    assert "     1  aten::add.Tensor (mixed-devices): an error of the project\n" in text
    assert "AssertionError (no limit): an error of the project's own" in text
    nothing = text.split("ran no operator on it:\n")[1].split(" tests ran")[0]
    assert nothing.split() == [
        "test_it.py::test_nothing[mps]",
        "test_it.py::test_named",
        "3",
        "of",
        "12",
    ]
    assert "asks for macos='14.1', and the run as a whole simulates macos='15.5'" in text
    # The traceback ends in the line that a Mac would stop at, and nothing of the run stays.
    assert "conformance/simulate" not in text
    assert simulate.active() is None
    assert not torch.backends.mps.is_available()
    own = {"PYTEST_VERSION", "PYTEST_CURRENT_TEST"}
    assert {k: v for k, v in os.environ.items() if k not in own} == before


def test_a_fixture_and_a_marker_for_single_tests(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\naddopts = --strict-markers\n")
    project.makepyfile(
        test_it="import pytest, torch\n"
        "@pytest.mark.mps_sim(macos='14.1')\n"
        "def test_marked():\n"
        "    assert torch.ones(1, device='mps').is_mps\n"
        "    assert not torch.backends.mps.is_macos_or_newer(15, 0)\n"
        "def test_fixture(mps_sim):\n"
        "    assert mps_sim.machine.macos == '15.5'\n"
        "    with pytest.warns(UserWarning):\n"
        "        torch.mps.profiler.start()\n"
        "def test_without():\n"
        "    assert not torch.backends.mps.is_available()\n"
    )
    assert project.inline_run().countoutcomes() == [3, 0, 0]


def test_what_is_known_is_strict_both_ways_and_written(
    project: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Path("known.txt")
    known.write_text(
        "# kornia's form\n"
        "NotImplementedError\ttest_it.py::test_eigh[mps]\n"
        "aten::mul.Tensor\ttest_it.py::test_mixed[mps]\n"
        "RuntimeError\ttest_it.py::test_runs[mps]\n"
        "float64\ttest_elsewhere.py::test_not_run\n"
    )
    options = (
        "--mps-sim",
        "--mps-sim-known=known.txt",
        "-k",
        "mps and not marked or fixture",
    )
    ran = project.inline_run(*options)
    assert ran.countoutcomes() == [2, 1, 2]
    text = capsys.readouterr().out
    assert "passes, and is known to fail with RuntimeError: take its line out" in text
    assert "fails with aten::add.Tensor, and is known to fail with aten::mul.Tensor" in text
    project.inline_run(*options, "--mps-sim-write")
    assert [line for line in known.read_text().splitlines() if not line.startswith("#")] == [
        "float64\ttest_elsewhere.py::test_not_run",
        "NotImplementedError\ttest_it.py::test_eigh[mps]",
        "aten::add.Tensor\ttest_it.py::test_mixed[mps]",
    ]
    assert project.inline_run(*options).countoutcomes() == [3, 2, 0]
    assert "2 failed as they are known to" in capsys.readouterr().out
    # By default on the device, what is made beside it is there too.
    ran = project.inline_run("--mps-sim", "--mps-sim-default", "-k", "mixed and mps")
    assert ran.countoutcomes() == [1, 0, 0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("RuntimeError test_a.py::test_b", "expected an operator, a limit or an exception, a tab"),
        ("E\ttest_a.py::test_b\nE\ttest_a.py::test_b", "has a line already"),
    ],
)
def test_a_line_of_another_form_is_refused(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "known.txt"
    path.write_text(line)
    with pytest.raises(ValueError, match=words):
        Known.read(path)


def test_a_failure_is_known_by_its_limit_and_operator() -> None:
    text = (
        "The operator 'aten::x' is not ...\n[mps-sim] simulated failure 'missing-operator', raised"
    )
    found = outcomes.failure("NotImplementedError", text, [])
    assert found == Failure("NotImplementedError", "missing-operator", "aten::x")
    assert found.reason == "aten::x"
    mixed = outcomes.failure(
        "RuntimeError",
        "[mps-sim] simulated failure 'mixed-devices', raised",
        [("mixed-devices", "aten::add.Tensor", "a.py:1"), ("float64", "aten::to", "a.py:2")],
    )
    assert mixed.operator == "aten::add.Tensor"
    assert outcomes.failure("ValueError", "no", []).reason == "ValueError"
    assert outcomes.asks_for_device([torch.device("mps", 0)])
    assert not outcomes.asks_for_device(["cpu", 3])
