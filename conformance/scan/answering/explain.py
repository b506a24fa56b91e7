"""A rule explained in Markdown, from its own texts and examples."""

from __future__ import annotations

from conformance.scan.errors import ConfigError
from conformance.scan.judging.rule import Good, Rule
from conformance.scan.judging.rules import BY_CODE, RULES
from conformance.scan.reading.kinds import kind_of

_FENCES = {"requirements": "text", "cfg": "ini", "make": "makefile", "docker": "dockerfile"}


def _block(code: str, path: str = "example.py") -> str:
    """One example; that of a file which is not Python says how it is called."""
    kind = kind_of(path) or "python"
    head = f"`{path}`:\n\n" if kind != "python" or path.endswith("setup.py") else ""
    return f"{head}```{_FENCES.get(kind, kind)}\n{code.rstrip()}\n```\n"


def _good(example: str | Good) -> str:
    return _block(example) if isinstance(example, str) else _block(example.code, example.path)


def explain_rule(rule: Rule) -> str:
    """One rule: what it finds, why, the fix, and its examples."""
    fixes = "Sometimes fixable with `--fix` or `--unsafe-fixes`.\n\n" if rule.fixable else ""
    parts = [
        f"## {rule.code} {rule.name} ({rule.severity.label})\n\n",
        f"{rule.summary[0].upper()}{rule.summary[1:]}.\n\n",
        f"**Why.** {rule.why}\n\n**Fix.** {rule.remedy}\n\n{fixes}",
        "Reported:\n\n",
        "\n".join(_block(example.code, example.path) for example in rule.invalid),
        "\nNot reported:\n\n",
        "\n".join(_good(example) for example in rule.valid),
    ]
    return "".join(parts)


_ENGINE = {
    "DEV000": (
        "unreadable",
        "error",
        "a file, or a cell of a notebook, could not be read or parsed",
        "What cannot be parsed was not looked at, so nothing found says nothing about it.",
        "Mend the syntax, save the file as UTF-8, or exclude what is no Python of this project.",
    ),
    "DEV001": (
        "faulty-ignore",
        "warning",
        "an ignore comment lacks its codes or its reason, names no rule, or is mis-spelt",
        "Such a comment silences nothing, though it looks as if it did.",
        "Write `# conformance: ignore[DEV101] why it is right here`.",
    ),
    "DEV002": (
        "unused-ignore",
        "warning",
        "an ignore comment silences nothing",
        "What it was written for is gone; left in place it would hide the next one.",
        "Delete the comment, or the codes that are not needed any more.",
    ),
}


def _explain_engine(code: str) -> str:
    name, level, summary, why, fix = _ENGINE[code]
    head = f"## {code} {name} ({level})\n\n{summary[0].upper()}{summary[1:]}.\n\n"
    return f"{head}**Why.** {why}\n\n**Fix.** {fix}\n"


def explain(what: str) -> str:
    """Explanation of a rule code, or of ``all``; raises ConfigError for anything else."""
    if what.lower() == "all":
        table = "".join(
            f"| {code} | {name} | {level} | {summary} |\n"
            for code, (name, level, summary, _, _) in _ENGINE.items()
        )
        table += "".join(
            f"| {rule.code} | {rule.name} | {rule.severity.label} | {rule.summary} |\n"
            for rule in RULES
        )
        head = (
            f"# Rules\n\n| code | name | severity | finds |\n| --- | --- | --- | --- |\n{table}\n"
        )
        engine = [_explain_engine(code) for code in _ENGINE]
        return head + "\n".join([*engine, *(explain_rule(rule) for rule in RULES)])
    if what.upper() in _ENGINE:
        return _explain_engine(what.upper())
    rule = BY_CODE.get(what.upper())
    if rule is None:
        raise ConfigError(
            f"no rule {what!r}: expected all or one of {', '.join([*_ENGINE, *BY_CODE])}"
        )
    return explain_rule(rule)
