"""Every rule against its own examples, and the texts that docs are made of."""

from __future__ import annotations

import re

import pytest

from conformance.scan.answering.explain import explain
from conformance.scan.answering.fixing import fix_source
from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rule import Bad, Good, Rule
from conformance.scan.judging.rules import BY_CODE, RULES

INVALID = [(rule, bad) for rule in RULES for bad in rule.invalid]
VALID = [
    (rule, good.code, good.path) if isinstance(good, Good) else (rule, good, "example.py")
    for rule in RULES
    for good in rule.valid
]


@pytest.mark.parametrize(("rule", "bad"), INVALID, ids=lambda part: getattr(part, "code", "")[:30])
def test_invalid_example_is_reported_on_its_line(rule: Rule, bad: Bad) -> None:
    findings = analyse(bad.path, bad.code.encode(), RULES)
    assert bad.line in [finding.line for finding in findings if finding.code == rule.code]


@pytest.mark.parametrize(
    ("rule", "code", "path"), VALID, ids=lambda part: getattr(part, "code", "")[:30]
)
def test_valid_example_is_not_reported(rule: Rule, code: str, path: str) -> None:
    findings = analyse(path, code.encode(), RULES)
    assert [finding for finding in findings if finding.code == rule.code] == []


@pytest.mark.parametrize(
    ("rule", "bad"),
    [(rule, bad) for rule, bad in INVALID if bad.fixed is not None],
    ids=lambda part: getattr(part, "code", "")[:30],
)
def test_fix_of_an_example_is_what_the_rule_says(rule: Rule, bad: Bad) -> None:
    fixed = fix_source(bad.path, bad.code.encode(), RULES, unsafe=True)
    assert fixed.after.decode() == bad.fixed
    left = analyse(bad.path, fixed.after, RULES)
    assert rule.code not in [finding.code for finding in left]


def test_rules_are_complete_and_numbered_in_order() -> None:
    codes = [rule.code for rule in RULES]
    assert codes == sorted(set(codes))
    assert codes[:14] == [f"DEV{number}" for number in range(101, 115)]
    for rule in RULES:
        assert re.fullmatch(r"[a-z-]+", rule.name)
        assert len(rule.invalid) >= 2
        assert len(rule.valid) >= 2
        assert not rule.summary.endswith(".")
        assert rule.why.endswith(".")
        assert rule.remedy.endswith(".")


def test_explanations_come_from_the_rules() -> None:
    text = explain("dev104")
    rule = BY_CODE["DEV104"]
    assert rule.why in text
    assert rule.remedy in text
    assert rule.invalid[0].code in text
    whole = explain("all")
    assert all(f"## {rule.code} {rule.name}" in whole for rule in RULES)
