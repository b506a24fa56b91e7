"""What a run found, as data: cases, the matrix of rows and targets, JSON, and the merging of both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from conformance.entrypoints import FACTS
from conformance.targets import NAMES

FORMAT = 1
PASS, FAIL, ABSENT, EXPECTED = "pass", "fail", "absent", "fail (expected)"
BLOCKED, BROKEN = "blocked", "broken"
NOT_RUN = "-"

# A cell shows the first that any of its cases has: what was decided before what was not.
_ORDER = (FAIL, EXPECTED, PASS, BROKEN, BLOCKED, ABSENT)

#: The cases that ask any tree for the facts.
FACT_CASES = "test_facts.py::"

FACT_TITLES = {
    "S1": "the score is computed where its inputs lie",
    "S2": "each device is told from every other",
    "S3": "mps is among the devices that are offered",
    "S4": "the LM takes this machine's device",
    "S5": "the LM begins with a backend that runs here",
    "S6": "an Apple GPU counts as one",
    "S7": "a training step casts for its own device",
    "A1": "works end to end on the device",
    "A2": "auto selects the machine's device",
    "A3": "no CUDA-only path is hit during inference",
}


class ReportError(ValueError):
    """A report cannot be read, written or merged; the message is one line."""


@dataclass
class Case:
    """One case on one target.

    Attributes:
        name: file and test, without the target, for example `test_cli.py::test_help`.
        target: the target's name, or empty for a case that needs none.
        outcome: `pass`, `fail`, `fail (expected)`, `absent` (the tree has no such thing),
            `blocked` (a library or weights are missing) or `broken` (the tree's own import fails).
        seconds: setup and call together.
        rows: what it covers.
        absent_rows: those of them that the tree does not have.
        message: why it failed or is absent, or how a fact holds, one line.
        place: `file:line` of the first failing frame, the tree's innermost where there is one.
        touches: the tree's touches of CUDA, a line each.
        library: touches by libraries, `call @ file:line` to count.
        missing: libraries that are not here, for which something inert stood in.
        network: tries to reach the network, `host @ file:line`; all were refused.
        shares: of each of another tree's modules, its area, and how many of how many public
            functions were entered.
        acts: lines of another tree that act on CUDA when they are called with a little of
            everything; told, and held against nobody.
    """

    name: str
    target: str
    outcome: str
    seconds: float
    rows: list[str] = field(default_factory=list)
    absent_rows: list[str] = field(default_factory=list)
    message: str = ""
    place: str = ""
    touches: list[str] = field(default_factory=list)
    library: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    network: list[str] = field(default_factory=list)
    shares: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    acts: list[str] = field(default_factory=list)


@dataclass
class Machine:
    """Where cases ran: operating system, versions, the targets judged, and the tree.

    Attributes:
        kin: whether the tree has our own surface, and so was asked all cases.
    """

    os: str
    python: str
    versions: dict[str, str]
    targets: dict[str, str]
    tree: str
    started: str
    seconds: float = 0.0
    kin: bool = True


@dataclass
class Part:
    """One run on one machine."""

    machine: Machine
    cases: list[Case]


@dataclass
class Report:
    """One or several runs, shown side by side."""

    parts: list[Part]

    def columns(self) -> list[tuple[str, int]]:
        """(target, part) of every column, by target; parts keep the order they were given in."""
        return [
            (name, number)
            for name in NAMES
            for number, part in enumerate(self.parts)
            if name in part.machine.targets
        ]

    def headings(self) -> list[str]:
        """A heading for each column; where a target comes twice it names the machine too."""
        columns = self.columns()
        names = [name for name, _ in columns]
        return [
            name
            if names.count(name) == 1
            else f"{name} ({self.parts[number].machine.os}, #{number + 1})"
            for name, number in columns
        ]

    def matrix(self) -> dict[str, list[str]]:
        """Row to its cell in each column; first the facts, then entry points by name."""
        found: dict[str, dict[tuple[str, int], list[str]]] = {}
        columns = self.columns()
        for number, part in enumerate(self.parts):
            for case in part.cases:
                places = [case.target] if case.target else list(part.machine.targets)
                for row in case.rows:
                    cell = ABSENT if row in case.absent_rows else case.outcome
                    for place in places:
                        found.setdefault(row, {}).setdefault((place, number), []).append(cell)
        rows = [row for row in FACTS if row in found]
        rows += sorted(row for row in found if row not in FACTS)
        return {row: [_worst(found[row].get(column, ())) for column in columns] for row in rows}

    def failures(self) -> list[Case]:
        """The cases that failed against expectation, or whose import failed."""
        bad = (FAIL, BROKEN)
        return [case for part in self.parts for case in part.cases if case.outcome in bad]

    def facts(self) -> dict[str, list[Case]]:
        """The cases that ask for facts, by fact; those of other cases' rows are left out."""
        cases = [c for part in self.parts for c in part.cases if c.name.startswith(FACT_CASES)]
        return {fact: found for fact in FACTS if (found := [c for c in cases if fact in c.rows])}

    def foreign(self) -> bool:
        """Whether it is on another tree alone, of which only the facts were asked."""
        return bool(self.parts) and all(not part.machine.kin for part in self.parts)

    def missing(self) -> list[str]:
        """The libraries that were missing anywhere."""
        return sorted({m for part in self.parts for case in part.cases for m in case.missing})

    def network(self) -> dict[str, int]:
        """Refused tries to reach the network, `host @ file:line` to how many cases."""
        tries = [t for part in self.parts for case in part.cases for t in case.network]
        return {place: tries.count(place) for place in dict.fromkeys(tries)}

    def counts(self) -> dict[str, int]:
        """How many cases had each outcome."""
        outcomes = [case.outcome for part in self.parts for case in part.cases]
        return {outcome: outcomes.count(outcome) for outcome in _ORDER if outcome in outcomes}

    def library_touches(self) -> dict[str, int]:
        """Touches by libraries over all cases, the most frequent first."""
        total: dict[str, int] = {}
        for part in self.parts:
            for case in part.cases:
                for place, count in case.library.items():
                    total[place] = total.get(place, 0) + count
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

    def to_json(self) -> str:
        """The whole report as JSON, which `from_json` reads back."""
        data = {
            "format": FORMAT,
            "matrix": {"columns": self.headings(), "rows": self.matrix()},
            "parts": [asdict(part) for part in self.parts],
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def row_title(row: str) -> str:
    """What a row is about: facts get their sentence, entry points speak for themselves."""
    return f"{row} {FACT_TITLES[row]}" if row in FACT_TITLES else row


def from_json(path: Path) -> Report:
    """Read a JSON report.

    Raises:
        ReportError: missing, damaged, or not a report of this format.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ReportError(f"{path}: not readable as JSON ({error})") from None
    try:
        if data["format"] != FORMAT:
            raise ReportError(f"{path}: report format {data['format']}, expected {FORMAT}")
        return Report([_part(part) for part in data["parts"]])
    except (KeyError, TypeError, AttributeError):
        raise ReportError(
            f"{path}: not a report of this suite; make one with --conformance-report=FILE.json"
        ) from None


def merge(reports: Iterable[Report]) -> Report:
    """All runs of several reports in one."""
    return Report([part for report in reports for part in report.parts])


def _part(data: dict[str, Any]) -> Part:
    return Part(Machine(**data["machine"]), [Case(**case) for case in data["cases"]])


def _worst(cells: Sequence[str]) -> str:
    return next((outcome for outcome in _ORDER if outcome in cells), NOT_RUN)
