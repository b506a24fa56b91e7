"""The device-generic cases of a PyTorch checkout's MPS tests run simulated, and are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.simulate import checkout, fidelity
from conformance.simulate.foreign import LIMIT, UNEXPLAINED, Result

CASES = """
import unittest
import torch

class TestMPS(unittest.TestCase):
    def test_metal(self):
        raise AssertionError("of Metal alone")

class TestCommonMPS(unittest.TestCase):
    device_type = "mps"
    def test_runs_mps(self):
        assert torch.ones(2, device="mps").sum().device.type == "mps"
    def test_missing_mps(self):
        torch.linalg.eigh(torch.eye(2, device="mps"))
    @unittest.expectedFailure
    def test_listed_mps(self):
        torch.ones(2, dtype=torch.float64, device="mps")
    @unittest.expectedFailure
    def test_listed_and_runs_mps(self):
        torch.ones(2, device="mps")
    @unittest.skip("no")
    def test_skipped_mps(self):
        pass
"""


def test_a_checkout_is_run_case_by_case(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_mps.py").write_text(CASES)
    (tmp_path / "test" / "conftest.py").write_text("raise SystemExit('not ours to load')\n")
    first, *why = checkout.run(tmp_path, None, 0)
    assert "4 ran, agreement 50.0% (1 passed, 1 failed as expected, 2 did not; 1 skipped)" in first
    said = "\n".join(why)
    assert f"1  {LIMIT}: missing-operator" in said
    assert f"1  {checkout.FAILS_ON_MACS}" in said
    assert "test_metal" not in said


def test_failures_have_causes() -> None:
    words = Result("failed", 0, 'AssertionError: "out of range" does not match "no such"')
    other = Result("failed", 0, "AssertionError: Tensor-likes are not close!")
    said = checkout.lines(Path("t"), {"a": words, "b": other, "c": Result("passed", 0)})
    assert "3 ran, agreement 33.3%" in said[0]
    assert any(checkout.OTHER_WORDS in line for line in said)
    assert any(UNEXPLAINED in line for line in said)


def test_a_folder_without_those_tests_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fidelity.main(["--pytorch-checkout", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"test_mps.py in {tmp_path}: expected a checkout" in said
