"""Known failures: a file that names cases which must fail, and is strict both ways."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from conformance.report import BROKEN, EXPECTED, FAIL, Report

#: Opens the reason of a line that was written by a run, which holds the message to it.
FROZEN = "[frozen]"


class ExpectError(ValueError):
    """The file cannot be read or a line is wrong; the message is one line."""


@dataclass(frozen=True)
class Expectation:
    """One line of the file: cases that must fail, and why.

    Attributes:
        pattern: a case's name as the report shows it, `*` allowed.
        target: the target it fails on, or `*`.
        reason: what is known about it.
        line: its number in the file.
    """

    pattern: str
    target: str
    reason: str
    line: int

    def matches(self, name: str, target: str) -> bool:
        """Whether a case is meant. Brackets are taken as they stand."""
        pattern = self.pattern.replace("[", "[[]")
        return fnmatch.fnmatchcase(name, pattern) and fnmatch.fnmatchcase(target, self.target)

    def differs(self, place: str, message: str) -> str:
        """What was frozen, if a failure now has another reason; lines may have moved."""
        if not self.reason.startswith(FROZEN):
            return ""
        before = self.reason.removeprefix(FROZEN).strip()
        now = " ".join(f"{place}: {message}".split())
        return "" if unmoved(before) == unmoved(now) else before


def unmoved(text: str) -> str:
    """A message without the numbers of lines, which move when others are written."""
    return re.sub(r"(\.py):\d+( and :\d+)*", r"\1", text)


def read(path: Path) -> list[Expectation]:
    """Read a file of lines `case [@target]  # reason`; blank and comment lines are free.

    Raises:
        ExpectError: the file cannot be read, or a line gives no reason.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ExpectError(f"--expect={path}: {reason}") from None
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        named, hash_sign, reason = line.partition(" #")
        case, at, target = named.strip().rpartition(" @")
        case, target = (case.strip(), target.strip()) if at else (named.strip(), "*")
        if not hash_sign or not reason.strip() or not case or " " in target or not target:
            raise ExpectError(
                f"--expect={path}: line {number} is not of the form 'case @target  # reason'"
            )
        found.append(Expectation(case, target, reason.strip(), number))
    return found


def write(report: Report, path: Path) -> None:
    """Write a file that expects what fails in a report, each with the message it has now.

    Raises:
        ExpectError: the file cannot be written.
    """
    lines = [f"# what failed on {part.machine.started}" for part in report.parts]
    for case in (case for part in report.parts for case in part.cases):
        if case.outcome in (FAIL, BROKEN, EXPECTED):
            where = f" @{case.target}" if case.target else ""
            said = " ".join(f"{case.place}: {case.message}".split())
            lines.append(f"{case.name}{where}  # {FROZEN} {said}")
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ExpectError(f"cannot write {path}: {error.strerror or error}") from None
