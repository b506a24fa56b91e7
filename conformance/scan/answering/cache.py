"""Results of earlier runs, keyed by content, by what the path declares and by the rule set."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from conformance.scan.answering.writing import replace_file
from conformance.scan.findings import Finding
from conformance.scan.judging.rule import Rule

_KEPT_FILES = 4
_KEPT_ENTRIES = 200_000


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


class Cache:
    """Findings by key in one JSON file a rule set; a damaged or foreign file counts as empty."""

    def __init__(self, folder: Path, rules: tuple[Rule, ...]) -> None:
        self.folder = folder
        self.file = folder / f"scan-{rule_set_key(rules)}.json"
        self._held: dict[str, list[Any]] = {}
        self._used: dict[str, list[Any]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(self.file.read_bytes())
            if isinstance(content, dict):
                self._held = content

    def get(self, key: str, path: str) -> list[Finding] | None:
        """Findings under a key as those of ``path``, None when there are none or they are bad."""
        rows = self._held.get(key)
        if rows is None:
            return None
        if not rows:
            self._used[key] = rows
            return []
        try:
            findings = [Finding.from_row(path, row) for row in rows]
        except (TypeError, ValueError, IndexError):
            return None
        self._used[key] = rows
        return findings

    def put(self, key: str, findings: list[Finding]) -> None:
        """Remember findings."""
        self._used[key] = [finding.to_row() for finding in findings]
        self._changed = True

    def save(self) -> None:
        """Write what was learnt; a folder that cannot be written is left alone."""
        if not self._changed:
            return
        merged = self._used
        if len(self._held) + len(self._used) <= _KEPT_ENTRIES:
            merged = {**self._held, **self._used}
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            marker = self.folder / ".gitignore"
            if not marker.exists():
                marker.write_text("*\n", encoding="utf-8")
            # dumps, not dump: only the former is written in C.
            replace_file(str(self.file), json.dumps(merged, separators=(",", ":")).encode())
            self._prune()

    def _prune(self) -> None:
        files = sorted(self.folder.glob("scan-*.json"), key=lambda f: f.stat().st_mtime)
        for old in files[:-_KEPT_FILES]:
            old.unlink(missing_ok=True)
