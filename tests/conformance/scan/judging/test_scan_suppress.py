"""Ignore comments: what they silence, and what is said of bad ones."""

from __future__ import annotations

import pytest

from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES

HEAD = "import torch\n"
SYNC = "torch.cuda.synchronize()"


def codes(code: str) -> list[str]:
    return [finding.code for finding in analyse("module.py", (HEAD + code).encode(), RULES)]


@pytest.mark.parametrize(
    "code",
    [
        f"{SYNC}  # conformance: ignore[DEV102] this tool is for CUDA",
        f"# conformance: ignore[DEV102] this tool is for CUDA\n{SYNC}",
        f"{SYNC}  # noqa  # conformance: ignore[DEV102] two comments",
        f"{SYNC}  #conformance:ignore[DEV101,DEV102]  reason",
        f"print(\n    {SYNC},\n)  # conformance: ignore[DEV102] at the statement's end",
        f"print(  # conformance: ignore[DEV102] at the statement's beginning\n    {SYNC},\n)",
        f"print(\n    1,  # conformance: ignore[DEV102] in the middle\n    [\n        {SYNC},\n    ],\n)",
        f"print(\n    # conformance: ignore[DEV102] alone in the middle\n    1,\n    {SYNC},\n)",
        f"# conformance: ignore[DEV102] above one that is wrapped\nprint(\n    1,\n    {SYNC},\n)",
        f"# conformance: ignore[DEV102] a reason that\n# takes two lines\n{SYNC}",
        f"if (  # conformance: ignore[DEV102] of the head\n    x\n    and {SYNC}\n):\n    pass",
        f"# conformance: ignore[DEV102] of the head\nwhile (\n    x\n    and {SYNC}\n):\n    pass",
        f"# conformance: ignore[DEV102] above\n@wrap\n@use(\n    {SYNC}\n)\ndef f():\n    pass",
        f"def f(  # conformance: ignore[DEV102] of the head\n    a,\n    b={SYNC},\n):\n    pass",
    ],
)
def test_an_ignore_with_codes_and_reason_silences(code: str) -> None:
    assert "DEV102" not in codes(code)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (f"{SYNC}  # conformance: ignore[DEV102]", ["DEV102", "DEV001"]),
        (f"{SYNC}  # conformance: ignore because", ["DEV102", "DEV001"]),
        (f"{SYNC}  # conformance: ignore[E501] because", ["DEV102", "DEV001"]),
        (f"{SYNC}  # conformance: ignore[DEV101] because", ["DEV102", "DEV002"]),
        ("x = 1  # conformance: ignore[DEV101] because", ["DEV002"]),
        (f"{SYNC}\n\n# conformance: ignore[DEV102] too late", ["DEV102", "DEV002"]),
        (f"{SYNC}  # conformance: ignore[DEV999] because", ["DEV102", "DEV001"]),
        (f"{SYNC}  # conformance: ignore[DEV102,DEV12] because", ["DEV001"]),
        (f"{SYNC}  # conformance: ignroe[DEV102] because", ["DEV102", "DEV001"]),
        (f"{SYNC}  # conformance ignore[DEV102] because", ["DEV102", "DEV001"]),
        (f"{SYNC}  # conformance: Ignore[DEV102] because", ["DEV102", "DEV001"]),
        (f"{SYNC}  # conformance: noqa DEV102", ["DEV102", "DEV001"]),
        (f"{SYNC}  # Conformance is what this ignores", ["DEV102"]),
        (f"{SYNC}  # conformance: the suite ignores this", ["DEV102"]),
        ("# conformance: ignoring[DEV101] nothing", ["DEV001"]),
        (
            f"# conformance: ignore[DEV102] of the head only\nif x:\n    {SYNC}",
            ["DEV102", "DEV002"],
        ),
        (f"text = '# conformance: ignore[DEV102] a string'; {SYNC}", ["DEV102"]),
    ],
)
def test_faulty_and_unused_ignores_are_reported(code: str, expected: list[str]) -> None:
    assert sorted(codes(code)) == sorted(expected)


def test_an_ignore_for_a_rule_that_does_not_run_is_not_called_unused() -> None:
    rules = [rule for rule in RULES if rule.code == "DEV101"]
    code = f"{HEAD}{SYNC}  # conformance: ignore[DEV102] because"
    assert analyse("module.py", code.encode(), rules) == []
