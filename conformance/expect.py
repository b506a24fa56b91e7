"""Known failures: a file that names cases which must fail, and is strict both ways."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path


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
        case, hash_sign, reason = line.partition(" #")
        words = case.split()
        target = words[1][1:] if len(words) == 2 and words[1].startswith("@") else "*"
        if not hash_sign or not reason.strip() or len(words) > 2 or (words[1:] and target == "*"):
            raise ExpectError(
                f"--expect={path}: line {number} is not of the form 'case @target  # reason'"
            )
        found.append(Expectation(words[0], target, reason.strip(), number))
    return found
