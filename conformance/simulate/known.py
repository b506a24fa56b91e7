"""The file of failures a project knows on the device: read, matched strictly, written, shrunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_HEADER = (
    "# Failures known on the simulated Mac: operator, limit or exception, a tab, the test.\n"
    "# Strict: a line whose test passes, or fails otherwise, fails the run.\n"
)


@dataclass(frozen=True)
class Failure:
    """How one test failed: the exception's name, and the limit and operator where it was one."""

    exception: str
    limit: str = ""
    operator: str = ""

    @property
    def reason(self) -> str:
        """What a written line says: the most particular thing that is known."""
        return self.operator or self.limit or self.exception

    def matches(self, reason: str) -> bool:
        """Whether a line with this first field speaks of this failure."""
        return reason in (self.exception, self.limit, self.operator)


class Known:
    """The lines of one file: test to reason. Raises ValueError for a line of another form."""

    def __init__(self, reasons: dict[str, str]) -> None:
        self.reasons = reasons

    @classmethod
    def read(cls, path: Path) -> Known:
        """From a file; kornia's lists (`exception`, tab, node id) have the same form."""
        reasons: dict[str, str] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            reason, tab, test = line.partition("\t")
            if not (tab and reason.strip() and test.strip()):
                raise ValueError(
                    f"{path}:{number}: expected an operator, a limit or an exception, a tab and "
                    f"a test's id, got {line!r}"
                )
            if test.strip() in reasons:
                raise ValueError(f"{path}:{number}: {test.strip()} has a line already")
            reasons[test.strip()] = reason.strip()
        return cls(reasons)

    def judged(self, test: str, failure: Failure | None) -> str | None:
        """None where a test ended as the file says, else one line that says what differs.

        `failure` is None for a test that passed. A test without a line may pass or fail.
        """
        reason = self.reasons.get(test)
        if reason is None or (failure is not None and failure.matches(reason)):
            return None
        if failure is None:
            return f"passes, and is known to fail with {reason}: take its line out"
        return f"fails with {failure.reason}, and is known to fail with {reason}"

    def updated(self, ran: Iterable[str], failed: dict[str, Failure]) -> Known:
        """These lines after a run: without those that passed, with those that failed.

        Lines of tests that did not run stay, and so do the words of a line that still holds.
        """
        kept = {test: why for test, why in self.reasons.items() if test not in set(ran)}
        for test, failure in failed.items():
            before = self.reasons.get(test, "")
            kept[test] = before if failure.matches(before) and before else failure.reason
        return Known(kept)

    def lines(self) -> Iterator[str]:
        """The file's text, line by line, in order of tests."""
        yield from _HEADER.splitlines(keepends=True)
        for test in sorted(self.reasons):
            yield f"{self.reasons[test]}\t{test}\n"

    def write(self, path: Path) -> None:
        """Writes the file, or replaces it."""
        path.write_text("".join(self.lines()), encoding="utf-8")
