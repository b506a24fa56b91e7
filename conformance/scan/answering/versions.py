"""What the project's own PyTorch has: fixes write nothing that is newer than what it asks for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from conformance.scan.errors import ConfigError
from conformance.scan.findings import Edit, Finding

Version = tuple[int, int]
_REQUIREMENT = re.compile(r"\s*[\"']?torch(?![\w.-])(?:\[[^\]]*\])?\s*([^;#\"']*)")
_BOUND = re.compile(r"(>=|==|~=|>)\s*(\d+)\.(\d+)")
#: Conda's names for it, with an exact version or the beginning of one.
_CONDA = re.compile(r"^\s*-\s*[\"']?(?:[\w-]+::)?pytorch(?:-gpu|-cpu)?\s*[=>]=?\s*(\d+\.\d+)", re.M)
_LOCKS = ("uv.lock", "poetry.lock", "pdm.lock", "pylock.toml", "Pipfile.lock")
#: Read as text: a lock file may be megabytes long, and this is all that is wanted of it.
_LOCKED = re.compile(
    r"^name = \"torch\"\s+version = \"(\d+\.\d+)|\"torch\": \{[^{}]*\"version\": \"==(\d+\.\d+)",
    re.M,
)
_CALLED = re.compile(r"\.accelerator\.(\w+)(\(check_available)?")
#: When `torch.accelerator` appeared, and what it got later (read off the releases' documentation).
_FIRST: Version = (2, 6)
_CHECKED: Version = (2, 7)
_MEMORY: Version = (2, 9)
_INFO: Version = (2, 10)
_OTHERS: tuple[tuple[re.Pattern[str], Version], ...] = (
    (re.compile(r"\A\w+\.(?:Stream|Event)\Z"), _FIRST),
    (re.compile(r"\.backends\.mps\."), (1, 12)),
    (re.compile(r"(?<!backends)\.mps\."), (2, 0)),
)


def parse_version(text: str) -> Version:
    """``2.6`` or ``2.6.1`` as two numbers; raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)\.(\d+)(?:\.\w+)*(?:\+\w+)?", text)
    if match is None:
        raise ConfigError(f"--torch-version {text!r}: expected a version such as 2.6")
    return int(match[1]), int(match[2])


def required_torch(root: Path) -> Version | None:
    """The oldest PyTorch that a project may be used with, as its own requirements say.

    ``pyproject.toml`` (dependencies, extras, groups, Poetry's table), ``requirements*.txt``,
    ``setup.cfg``, ``setup.py``, conda's ``environment.yml`` and lock files; the lowest bound
    counts. None where nothing bounds it from below.
    """
    bounds = [bound for line in _lines(root) if (bound := _bound(line)) is not None]
    return min(bounds, default=None)


def _bound(line: str) -> Version | None:
    match = _REQUIREMENT.match(line)
    if match is None:
        return None
    return min(((int(b[2]), int(b[3])) for b in _BOUND.finditer(match[1])), default=None)


def _lines(root: Path) -> Iterator[str]:
    """Lines that may be requirements; files that are not there or cannot be read have none."""
    asked = ("requirements*.txt", "requirements*.in", "requirements/*.txt", "requirements*.lock")
    for file in sorted(file for pattern in asked for file in root.glob(pattern)):
        yield from _text(file).splitlines()
    for file in sorted(root.glob("environment*.y*ml")):
        for match in _CONDA.finditer(_text(file)):
            yield f"torch =={match[1]}"
    for name in _LOCKS:
        for match in _LOCKED.finditer(_text(root / name)):
            yield f"torch =={match[1] or match[2]}"
    for name in ("setup.cfg", "setup.py"):
        yield from re.split(r"[\n,\[]", _text(root / name))
    with suppress(tomllib.TOMLDecodeError):
        yield from _declared(tomllib.loads(_text(root / "pyproject.toml")))


def _declared(content: dict[str, Any]) -> Iterator[str]:
    project = content.get("project", {})
    if isinstance(project, dict):
        extras = project.get("optional-dependencies", {})
        groups = extras.values() if isinstance(extras, dict) else ()
        more = content.get("dependency-groups", {})
        named = more.values() if isinstance(more, dict) else ()
        for group in (project.get("dependencies", []), *groups, *named):
            if isinstance(group, list):
                yield from (line for line in group if isinstance(line, str))
    tool = content.get("tool", {})
    poetry = tool.get("poetry", {}).get("dependencies", {}) if isinstance(tool, dict) else {}
    asked = poetry.get("torch") if isinstance(poetry, dict) else None
    asked = asked.get("version") if isinstance(asked, dict) else asked
    if isinstance(asked, str):
        yield "torch " + re.sub(r"^[\^~]?(?=\d)", ">=", asked)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def needs(edits: Iterable[Edit]) -> Version:
    """The oldest PyTorch that has what edits write."""
    wanted: Version = (0, 0)
    for edit in edits:
        for name, checked in _CALLED.findall(edit.text):
            wanted = max(wanted, _since(name, bool(checked)))
        for pattern, since in _OTHERS:
            if pattern.search(edit.text):
                wanted = max(wanted, since)
    return wanted


def _since(name: str, checked: bool) -> Version:
    """The release in which a function of ``torch.accelerator`` has its present form."""
    if name == "get_memory_info":
        return _INFO
    if name == "empty_cache" or name.startswith(("memory_", "max_memory_", "reset_")):
        return _MEMORY
    return _CHECKED if checked or name.endswith("_index") else _FIRST


def fitting(finding: Finding, torch: Version | None) -> Finding:
    """A finding whose fix writes what the project's PyTorch has: its newest form that fits, or
    none at all."""
    if torch is None or finding.fix is None:
        return finding
    for edits in (finding.fix.edits, *finding.fix.older):
        if needs(edits) <= torch:
            return replace(finding, fix=replace(finding.fix, edits=edits, older=()))
    return replace(finding, fix=None)
