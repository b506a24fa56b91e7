"""Functions that are handed to new processes, and packages that are the project's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.scan.config import Config
from conformance.scan.findings import Severity
from conformance.scan.reading.discover import discover
from conformance.scan.runner import scan

TRAIN = """import torch
import torch.multiprocessing as mp
def main():
    {guard}
    mp.{start}
def run(rank):
    step(rank)
def step(rank):
    torch.ones(1).cuda(rank)
main()
"""


def severities(root: Path) -> list[Severity]:
    config = Config(root, cache=False, severity=Severity.NOTE).checked()
    return [f.severity for f in scan(discover([str(root)], config), config).findings]


@pytest.mark.parametrize(
    ("guard", "start", "expected"),
    [
        ("assert torch.cuda.is_available()", "spawn(run, nprocs=2)", Severity.NOTE),
        ("assert torch.cuda.is_available()", "Process(target=run).start()", Severity.NOTE),
        ("print('go')", "spawn(run, nprocs=2)", Severity.ERROR),
        ("assert torch.cuda.is_available()", "keep(run)", Severity.ERROR),
    ],
)
def test_what_is_started_where_cuda_is_known(
    tmp_path: Path, guard: str, start: str, expected: Severity
) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "train.py").write_text(TRAIN.format(guard=guard, start=start))
    assert severities(tmp_path) == [expected]


def test_an_import_of_the_projects_own_package_is_none_of_a_foreign_one(tmp_path: Path) -> None:
    (tmp_path / "bench.py").write_text("from mamba_ssm.models import lm\n")
    assert severities(tmp_path) == [Severity.WARNING]
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("")
    from conformance.scan.knowing.reach import is_own_package

    is_own_package.cache_clear()
    assert severities(tmp_path) == []
