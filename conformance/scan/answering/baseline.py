"""The baseline: findings that are known, recognised again when the code around them moves."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.scan.answering.writing import replace_file
from conformance.scan.errors import ConfigError
from conformance.scan.findings import Finding

_FIELDS = ("path", "code", "scope", "text", "shape")


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """Fingerprint of one finding; lines and columns have no part in it."""

    path: str
    code: str
    scope: str
    text: str
    shape: str

    @classmethod
    def of(cls, finding: Finding) -> Entry:
        """Fingerprint of a finding."""
        return cls(finding.path, finding.code, finding.scope, finding.text, finding.shape)


#: What may differ at each round, strictest first. An entry answers for one finding only, so a
#: copy of known code is new.
_ROUNDS: tuple[Callable[[Entry], tuple[str, ...]], ...] = (
    lambda e: (e.path, e.code, e.scope, e.text),  # unchanged, or moved inside its function
    lambda e: (e.path, e.code, e.text),  # moved to another function, or that was renamed
    lambda e: (e.path, e.code, e.scope, e.shape),  # its variables were renamed
    lambda e: (e.code, e.scope, e.text),  # the file was renamed, or the function moved
    lambda e: (e.code, e.text),  # moved to another file and another function
)


@dataclass
class Comparison:
    """Findings that the baseline does not know, and its entries that are still found."""

    new: list[Finding]
    kept: list[Entry]
    left: list[Entry]

    @property
    def gone(self) -> int:
        """How many entries answer for nothing any more."""
        return len(self.left)


def compare(findings: Sequence[Finding], entries: Sequence[Entry]) -> Comparison:
    """Match findings with entries one to one, the closest matches first."""
    left = list(range(len(findings)))
    free = list(entries)
    marks = [Entry.of(finding) for finding in findings]
    for identity in _ROUNDS:
        if not left or not free:
            break
        pool: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
        for entry in free:
            pool[identity(entry)].append(entry)
        unmatched = []
        for index in left:
            same = pool.get(identity(marks[index]))
            if same:
                same.pop()
            else:
                unmatched.append(index)
        left = unmatched
        free = [entry for rest in pool.values() for entry in rest]
    new = set(left)
    kept = [mark for index, mark in enumerate(marks) if index not in new]
    return Comparison([findings[index] for index in left], kept, free)


def load(path: Path) -> list[Entry]:
    """Entries of a baseline file; raises ConfigError when it is missing or damaged."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("version") != 1:
            raise ValueError("not a baseline of version 1")
        return [Entry(*(str(row[name]) for name in _FIELDS)) for row in content["findings"]]
    except FileNotFoundError:
        raise ConfigError(
            f"baseline {path} does not exist: write it with --update-baseline --grow"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read baseline {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"baseline {path} is damaged: {error}") from None


def save(path: Path, entries: Iterable[Entry]) -> None:
    """Write a baseline, sorted so that its own changes read well; raises ConfigError."""
    rows = [{name: getattr(entry, name) for name in _FIELDS} for entry in sorted(entries)]
    text = json.dumps({"version": 1, "findings": rows}, indent=1) + "\n"
    try:
        replace_file(str(path), text.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise ConfigError(f"cannot write baseline {path}: {error.strerror or error}") from None
