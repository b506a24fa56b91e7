"""The sites that broke ACE-Step off CUDA, in several shapes each, and their repaired versions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conformance.scan.findings import Severity
from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES

FIXTURES = Path(__file__).parent / "fixtures"
_EXPECTED = re.compile(r"# expect: (DEV\d{3})")


def _found(path: Path) -> set[tuple[int, str]]:
    # The neutral name keeps the fixture's own path from declaring a backend.
    findings = analyse("module.py", path.read_bytes(), RULES)
    return {(f.line, f.code) for f in findings if f.severity > Severity.NOTE}


def _sites(folder: str) -> list[Path]:
    return sorted((FIXTURES / folder).glob("s*.py"))


@pytest.mark.parametrize("path", _sites("broken"), ids=lambda path: path.stem)
def test_broken_site_is_found_with_its_code_and_line(path: Path) -> None:
    expected = {
        (number, code)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for code in _EXPECTED.findall(line)
    }
    assert expected
    assert _found(path) == expected


@pytest.mark.parametrize("path", _sites("repaired"), ids=lambda path: path.stem)
def test_repaired_site_is_clean(path: Path) -> None:
    assert _found(path) == set()


def test_every_site_has_at_least_four_shapes_and_each_is_repaired() -> None:
    broken = [path.name for path in _sites("broken")]
    for number in range(1, 8):
        assert sum(name.startswith(f"s{number}_") for name in broken) >= 4
    assert broken == [path.name for path in _sites("repaired")]
