"""Results of earlier runs, keyed by content, by what the path declares and by the rule set.

Beside the findings lie what each file tells the others of its project (read only when something
changed), and by which signs a file is known to be as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from conformance.scan.answering.writing import replace_file
from conformance.scan.findings import Finding
from conformance.scan.judging.rule import Rule
from conformance.scan.judging.summary import Report, Summary
from conformance.scan.reading.source import is_unsaved, read_bytes

_KEPT_FILES = 4
_KEPT_ENTRIES = 200_000
_UNSURE_NS = 2_000_000_000


def rule_set_key(rules: tuple[Rule, ...]) -> str:
    """Hash of the scanner's own code and of the rules that run."""
    digest = hashlib.blake2b(digest_size=12)
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for folder, inner, names in os.walk(top):
        inner.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                with open(os.path.join(folder, name), "rb") as stream:
                    digest.update(stream.read())
    digest.update(",".join(rule.code for rule in rules).encode())
    return digest.hexdigest()


def content_key(data: bytes, declared: str) -> str:
    """Key of one file: its content and what its path declares."""
    return hashlib.blake2b(data, digest_size=16).hexdigest() + declared


class Store:
    """Plain values by key in a JSON file; a damaged or foreign file counts as empty."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._held: dict[str, Any] = {}
        self._used: dict[str, Any] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(self.file.read_bytes())
            if isinstance(content, dict):
                self._held = content

    def get(self, key: str) -> Any:
        """The value of a key, None when there is none."""
        value = self._held.get(key)
        if value is None:
            return self._used.get(key)
        self._used[key] = value
        return value

    def put(self, key: str, value: Any) -> None:
        """Remember a value."""
        self._used[key] = value
        self._held.pop(key, None)
        self._changed = True

    def save(self) -> None:
        """Write what was learnt; a folder that cannot be written is left alone."""
        if not self._changed:
            return
        merged = self._used
        if len(self._held) + len(self._used) <= _KEPT_ENTRIES:
            merged = {**self._held, **self._used}
        with contextlib.suppress(OSError):
            folder = self.file.parent
            folder.mkdir(parents=True, exist_ok=True)
            marker = folder / ".gitignore"
            if not marker.exists():
                marker.write_text("*\n", encoding="utf-8")
            # dumps, not dump: only the former is written in C.
            replace_file(str(self.file), json.dumps(merged, separators=(",", ":")).encode())
            self._prune()

    def _prune(self) -> None:
        kind = self.file.name.partition("-")[0]
        files = sorted(self.file.parent.glob(f"{kind}-*.json"), key=lambda f: f.stat().st_mtime)
        for old in files[:-_KEPT_FILES]:
            old.unlink(missing_ok=True)


class Cache:
    """Findings by key, one file a rule set; beside it the summaries and the signs of files."""

    def __init__(self, folder: Path, rules: tuple[Rule, ...]) -> None:
        self._name = f"{rule_set_key(rules)}.json"
        self.file = folder / f"scan-{self._name}"
        self._findings = Store(self.file)
        self._signs = Store(folder / "signs-all.json")
        self._started = time.time_ns()

    @cached_property
    def _summaries(self) -> Store:
        return Store(self.file.parent / f"summaries-{self._name}")

    def get(self, key: str, path: str) -> list[Finding] | None:
        """Findings under a key as those of ``path``, None when there are none or they are bad."""
        rows = self._findings.get(key)
        try:
            return None if rows is None else [Finding.from_row(path, row) for row in rows]
        except (TypeError, ValueError, IndexError, KeyError):
            return None

    def put(self, key: str, findings: list[Finding]) -> None:
        """Remember findings."""
        self._findings.put(key, [finding.to_row() for finding in findings])

    def summary(self, key: str) -> Summary | None:
        """What a file tells the others, None when it is not known."""
        row = self._summaries.get(key)
        try:
            return None if row is None else Summary.from_row(row)
        except (TypeError, ValueError):
            return None

    def put_summary(self, key: str, summary: Summary) -> None:
        """Remember what a file tells the others."""
        self._summaries.put(key, summary.to_row())

    def report(self, key: str) -> Report | None:
        """What a second look at a file gave, None when it is not known."""
        row = self._summaries.get(key)
        try:
            return None if row is None else Report.from_row(row)
        except (TypeError, ValueError, AttributeError):
            return None

    def put_report(self, key: str, report: Report) -> None:
        """Remember what a second look at a file gave."""
        self._summaries.put(key, report.to_row())

    def settled(self, key: str) -> dict[str, list[Finding]] | None:
        """The findings that the project as a whole changed, by file."""
        rows = self._findings.get(key)
        try:
            return (
                None
                if rows is None
                else {path: [Finding.from_row(path, row) for row in every] for path, every in rows}
            )
        except (TypeError, ValueError, IndexError, KeyError):
            return None

    def put_settled(self, key: str, settled: dict[str, list[Finding]]) -> None:
        """Remember the findings that the project as a whole changed."""
        rows = [[path, [f.to_row() for f in every]] for path, every in settled.items()]
        self._findings.put(key, rows)

    def key_of(self, path: str, declared: str) -> str:
        """Key of a file: read anew unless size and times are those of an earlier look.

        Raises OSError for a file that cannot be read.
        """
        if is_unsaved(path):
            return content_key(read_bytes(path), "") + declared
        about = os.stat(path)
        signs = [about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino]
        held = self._signs.get(path)
        if isinstance(held, list) and held[:4] == signs and isinstance(held[4], str):
            return held[4] + declared
        digest = content_key(read_bytes(path), "")
        if max(about.st_mtime_ns, about.st_ctime_ns) < self._started - _UNSURE_NS:
            # What was written just now may be written again within the same tick of the clock.
            self._signs.put(path, [*signs, digest])
        return digest + declared

    def save(self) -> None:
        """Write what was learnt; a folder that cannot be written is left alone."""
        self._findings.save()
        self._signs.save()
        if "_summaries" in self.__dict__:
            self._summaries.save()
