"""The sites that broke ACE-Step off CUDA, in several shapes each, and their repaired versions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from conformance.scan.findings import Severity
from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES

FIXTURES = Path(__file__).parent / "fixtures"
_EXPECTED = re.compile(r"# expect: (DEV\d{3})")


def _found(code: str) -> set[tuple[int, str]]:
    # The neutral name keeps the fixture's own path from declaring a backend.
    findings = analyse("module.py", code.encode(), RULES)
    return {(f.line, f.code) for f in findings if f.severity > Severity.NOTE}


def _expected(code: str) -> set[tuple[int, str]]:
    return {
        (number, code)
        for number, line in enumerate(code.splitlines(), 1)
        for code in _EXPECTED.findall(line)
    }


#: What a file may say of other accelerators without speaking for the line in question.
BESIDE = (
    'kind = "float32" if other in ["cuda", "xpu"] else "float16"',
    "if torch.backends.mps.is_available(): print('slow on mps')",
    "if torch.accelerator.is_available(): torch.accelerator.empty_cache()",
)


def _with_line(code: str, line: str) -> str:
    """The code with a line more at the beginning of every function and at the end."""
    lines = code.splitlines()
    functions = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)]
    for first in sorted({node.body[0].lineno for node in functions}, reverse=True):
        if lines[first - 1][:1] == " ":
            indent = len(lines[first - 1]) - len(lines[first - 1].lstrip())
            lines.insert(first - 1, " " * indent + line)
    return "\n".join([*lines, line, ""])


def _sites(folder: str) -> list[Path]:
    return sorted((FIXTURES / folder).glob("s*.py"))


@pytest.mark.parametrize("path", _sites("broken"), ids=lambda path: path.stem)
def test_broken_site_is_found_with_its_code_and_line(path: Path) -> None:
    code = path.read_text(encoding="utf-8")
    assert _expected(code)
    assert _found(code) == _expected(code)


@pytest.mark.parametrize("path", _sites("broken"), ids=lambda path: path.stem)
@pytest.mark.parametrize("beside", BESIDE)
def test_broken_site_is_found_next_to_a_line_about_another_accelerator(
    path: Path, beside: str
) -> None:
    code = _with_line(path.read_text(encoding="utf-8"), beside)
    assert _expected(code) <= _found(code)


@pytest.mark.parametrize("path", _sites("repaired"), ids=lambda path: path.stem)
def test_repaired_site_is_clean(path: Path) -> None:
    assert _found(path.read_text(encoding="utf-8")) == set()


def test_every_site_has_at_least_four_shapes_and_each_is_repaired() -> None:
    broken = [path.name for path in _sites("broken")]
    for number in range(1, 8):
        assert sum(name.startswith(f"s{number}_") for name in broken) >= 4
    assert broken == [path.name for path in _sites("repaired")]
