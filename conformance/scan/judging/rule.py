"""What a rule is: its texts, its examples and the hooks through which it sees the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from conformance.scan.findings import Severity

#: ``hook(context, node)``: called for each node of the kind it is registered under.
Hook = Callable[[Any, Any], None]


@dataclass(frozen=True, slots=True)
class Bad:
    """Code that a rule must report, and on which line (from 1); ``fixed`` is what its fix makes."""

    code: str
    line: int = 1
    fixed: str | None = None
    path: str = "example.py"


@dataclass(frozen=True, slots=True)
class Good:
    """What a rule must not report in a file of another name than ``example.py``."""

    code: str
    path: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Hook kinds: call, function, class, import, compare, collection, literal, if,
    ifexp, keyword-free ``placement`` (a device reaching a place that uses one) and module; in
    files that are not Python setting, asked (a requirement) and command."""

    code: str
    name: str
    severity: Severity
    summary: str
    why: str
    remedy: str
    invalid: tuple[Bad, ...]
    valid: tuple[str | Good, ...]
    hooks: dict[str, Hook] = field(default_factory=dict)
    fixable: bool = False
