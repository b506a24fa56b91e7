"""A rule explained in Markdown, from its own texts and examples."""

from __future__ import annotations

from conformance.scan.errors import ConfigError
from conformance.scan.judging.rule import Rule
from conformance.scan.judging.rules import BY_CODE, RULES


def _block(code: str) -> str:
    return f"```python\n{code}\n```\n"


def explain_rule(rule: Rule) -> str:
    """One rule: what it finds, why, the fix, and its examples."""
    fixes = "Sometimes fixable with `--fix` or `--unsafe-fixes`.\n\n" if rule.fixable else ""
    parts = [
        f"## {rule.code} {rule.name} ({rule.severity.label})\n\n",
        f"{rule.summary[0].upper()}{rule.summary[1:]}.\n\n",
        f"**Why.** {rule.why}\n\n**Fix.** {rule.remedy}\n\n{fixes}",
        "Reported:\n\n",
        "\n".join(_block(example.code) for example in rule.invalid),
        "\nNot reported:\n\n",
        "\n".join(_block(example) for example in rule.valid),
    ]
    return "".join(parts)


def explain(what: str) -> str:
    """Explanation of a rule code, or of ``all``; raises ConfigError for anything else."""
    if what.lower() == "all":
        table = "".join(
            f"| {rule.code} | {rule.name} | {rule.severity.label} | {rule.summary} |\n"
            for rule in RULES
        )
        head = (
            f"# Rules\n\n| code | name | severity | finds |\n| --- | --- | --- | --- |\n{table}\n"
        )
        return head + "\n".join(explain_rule(rule) for rule in RULES)
    rule = BY_CODE.get(what.upper())
    if rule is None:
        raise ConfigError(f"no rule {what!r}: expected all or one of {', '.join(BY_CODE)}")
    return explain_rule(rule)
