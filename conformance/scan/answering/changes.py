"""Which lines a change touched, as git tells it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from conformance.scan.errors import ConfigError
from conformance.scan.findings import Finding

_HUNK = re.compile(rb"^@@ -\S+ \+(\d+)(?:,(\d+))? @@")
_OPTIONS = ("-c", "core.quotePath=false", "-c", "diff.external=", "-c", "core.fsmonitor=false")


def _git(folder: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(
            ["git", *_OPTIONS, *arguments], cwd=folder, capture_output=True, check=False
        )
    except OSError as error:
        raise ConfigError(f"--diff needs git: {error.strerror or error}") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ConfigError(f"git could not tell the changes: {lines[0] if lines else 'unknown'}")
    return done.stdout


def changed_lines(folder: Path, revision: str) -> dict[str, list[tuple[int, int]] | None]:
    """Ranges of lines (both ends included) that differ from a revision, by absolute path.

    A file that git does not track is all new: None. Raises ConfigError when git or the
    revision is not there.
    """
    if revision.startswith("-"):
        raise ConfigError(f"{revision!r} is not a revision")
    top = Path(os.fsdecode(_git(folder, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    changed: dict[str, list[tuple[int, int]] | None] = {}
    names = _git(
        top, "diff", "--name-only", "-z", "--no-renames", "--diff-filter=d", revision, "--"
    ).split(b"\0")
    for name in names:
        if name:
            path = os.fsdecode(name)
            patch = _git(
                top, "diff", "-U0", "--no-color", "--no-ext-diff", "--no-textconv",
                "--no-renames", revision, "--", f":(literal){path}",
            )  # fmt: skip
            changed[str(top / path)] = _hunks(patch)
    for name in _git(top, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0"):
        if name:
            changed[str(top / os.fsdecode(name))] = None
    return changed


def _hunks(patch: bytes) -> list[tuple[int, int]]:
    ranges = []
    for line in patch.split(b"\n"):
        match = _HUNK.match(line)
        if match is not None:
            start, count = int(match[1]), int(match[2] or b"1")
            if count:
                ranges.append((start, start + count - 1))
    return ranges


def touched(
    findings: Sequence[Finding], changed: dict[str, list[tuple[int, int]] | None]
) -> list[Finding]:
    """Findings of which at least one line was changed."""
    result = []
    for finding in findings:
        ranges = changed.get(os.path.realpath(finding.path), [])
        if ranges is None or any(
            start <= finding.end_line and finding.line <= end for start, end in ranges
        ):
            result.append(finding)
    return result
