"""The gate: what a run found against what the baseline knows, as far as the run could see."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conformance.scan.answering.baseline import Entry, compare
from conformance.scan.findings import Finding
from conformance.scan.reading.discover import Target

#: What is found whichever rules run.
_ENGINE = ("DEV000", "DEV001", "DEV002")


@dataclass
class Sight:
    """What a run could have found: these files, below these folders, by the rules that ran.

    ``keeps`` says whether the settings let a rule through for a path. Paths are those inside the
    project, which is at ``root``; ``broken`` files were looked at and could not be read or
    parsed, ``changed`` (None: all) those that the run was restricted to.
    """

    root: Path
    codes: Collection[str]
    keeps: Callable[[str, str], bool]
    files: set[str]
    folders: tuple[str, ...]
    broken: set[str] = field(default_factory=set)
    changed: set[str] | None = None

    @classmethod
    def of(
        cls,
        root: Path,
        codes: Collection[str],
        keeps: Callable[[str, str], bool],
        given: Iterable[str],
        targets: Sequence[Target],
        findings: Iterable[Finding],
        changed: set[str] | None = None,
    ) -> Sight:
        """The sight of a run on the given paths; ``findings`` are all that it made."""
        logical = {target.shown: target.logical for target in targets}
        broken = {logical.get(f.path, f.path) for f in findings if f.code == "DEV000"}
        folders = tuple(_inside(root, path) for path in given if os.path.isdir(path))
        within = None
        if changed is not None:
            within = {t.logical for t in targets if os.path.realpath(t.path) in changed}
        return cls(root, codes, keeps, set(logical.values()), folders, broken, within)

    def holds(self, path: str) -> bool:
        """Whether a file was looked at, or would have been if it were still there."""
        if path in self.files:
            return True
        below = any(not top or path == top or path.startswith(top + "/") for top in self.folders)
        return below and self.is_gone(path)

    def is_gone(self, path: str) -> bool:
        """Whether a file is not there any more."""
        return not Path(self.root, path).exists()

    def could_find(self, entry: Entry) -> bool:
        """Whether the run would have found what an entry stands for, had it still been there."""
        if entry.path in self.broken or not self.holds(entry.path):
            return False
        if self.changed is not None and entry.path not in self.changed:
            return False
        runs = entry.code in _ENGINE or entry.code in self.codes
        return runs and self.keeps(entry.path, entry.code)


def _inside(root: Path, given: str) -> str:
    """A path given on the command line as one inside the project; nothing for its root."""
    full, top = os.path.abspath(given), str(root)
    if full == top:
        return ""
    inner = os.path.relpath(full, top) if full.startswith(top + os.sep) else os.path.basename(full)
    return inner.replace(os.sep, "/")


@dataclass
class Verdict:
    """What the baseline does not know, its entries as they go on, and those that are gone."""

    new: list[Finding]
    kept: list[Entry]
    dropped: list[Entry]


def judge(
    findings: Sequence[Finding],
    below: Sequence[Finding],
    entries: Sequence[Entry],
    sight: Sight,
    logical: dict[str, str],
) -> Verdict:
    """Findings held against a baseline.

    ``below`` was found too and is not shown; it keeps its entries. Entries of files that are
    there and were not looked at answer for nothing, and stay as they are.
    """
    free: list[Entry] = []
    apart: list[Entry] = []
    for entry in entries:
        (free if sight.holds(entry.path) or sight.is_gone(entry.path) else apart).append(entry)
    inside = [finding.at(logical.get(finding.path, finding.path)) for finding in findings]
    more = [finding.at(logical.get(finding.path, finding.path)) for finding in below]
    # What could not be parsed still has its findings: no other file's answer for them.
    parts = [
        compare(
            [f for f in (*inside, *more) if (f.path in sight.broken) is broken],
            [entry for entry in free if (entry.path in sight.broken) is broken],
        )
        for broken in (False, True)
    ]
    found = {id(finding) for part in parts for finding in part.new}
    new = [f for mark, f in zip(inside, findings, strict=True) if id(mark) in found]
    unmet = [entry for part in parts for entry in part.left]
    dropped = [entry for entry in unmet if sight.could_find(entry)]
    gone = set(map(id, dropped))
    left = [entry for entry in unmet if id(entry) not in gone]
    kept = [entry for part in parts for entry in part.kept]
    return Verdict(new, [*apart, *kept, *left], dropped)
