"""The judged samples: complete, without paths of one machine, and within the goals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conformance.scan import benchmark
from conformance.scan.rules import BY_CODE

STUDY: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "study.json").read_text(encoding="utf-8")
)


def test_samples_have_the_agreed_size_and_name_rules_that_exist() -> None:
    findings = STUDY["findings"]["judged"]
    assert len(findings) == 200
    assert len(STUDY["unreported"]["judged"]) == 100
    assert {row["code"] for row in findings} <= set(BY_CODE)
    assert {row["verdict"] for row in findings} == {"right", "wrong"}
    assert all(row.get("why") for row in findings if row["verdict"] == "wrong")
    for row in [*findings, *STUDY["unreported"]["judged"]]:
        assert row["path"].split("/")[0] in STUDY["packages"]


@pytest.mark.parametrize(("severity", "goal"), [("error", 0.95), ("warning", 0.85)])
def test_precision(severity: str, goal: float) -> None:
    rows = [row for row in STUDY["findings"]["judged"] if row["severity"] == severity]
    assert sum(row["verdict"] == "right" for row in rows) / len(rows) >= goal


def test_recall() -> None:
    rows = STUDY["unreported"]["judged"]
    assert sum(row["verdict"] == "missed" for row in rows) / len(rows) <= 0.05


def test_the_benchmark_prints_ratios_from_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.py").write_text("import torch\ntorch.cuda.synchronize()\n")
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\nexit 0\n")
    other.chmod(0o755)
    monkeypatch.chdir(Path(__file__).parents[3])
    tool = str(other)
    assert benchmark.main([str(tmp_path), "--ruff", tool, "--torchfix", tool, "--repeat", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "ruff F, no cache",
        "scan, cold",
        "scan, warm",
        "torchfix",
    ]
    other.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(RuntimeError, match="no cache failed"):
        benchmark.main([str(tmp_path), "--ruff", tool, "--repeat", "1"])
