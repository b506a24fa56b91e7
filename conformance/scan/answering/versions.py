"""What the project's own PyTorch has: fixes write nothing that is newer than what it asks for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from conformance.scan.errors import ConfigError
from conformance.scan.findings import Finding, Fix

Version = tuple[int, int]
_REQUIREMENT = re.compile(r"\s*[\"']?torch(?![\w.-])(?:\[[^\]]*\])?\s*([^;#\"']*)")
_BOUND = re.compile(r"(>=|==|~=|>)\s*(\d+)\.(\d+)")
_CALLED = re.compile(r"\.accelerator\.(\w+)(\(check_available)?")
#: When `torch.accelerator` appeared, and what it got later (read off the releases' documentation).
_FIRST: Version = (2, 6)
_CHECKED: Version = (2, 7)
_MEMORY: Version = (2, 9)
_INFO: Version = (2, 10)


def parse_version(text: str) -> Version:
    """``2.6`` or ``2.6.1`` as two numbers; raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)\.(\d+)(?:\.\w+)*(?:\+\w+)?", text)
    if match is None:
        raise ConfigError(f"--torch-version {text!r}: expected a version such as 2.6")
    return int(match[1]), int(match[2])


def required_torch(root: Path) -> Version | None:
    """The oldest PyTorch that a project may be used with, as its own requirements say.

    ``pyproject.toml`` (dependencies, extras, Poetry's table), ``requirements*.txt``, ``setup.cfg``
    and ``setup.py``; the lowest bound counts. None where nothing bounds it from below.
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
    for file in sorted([*root.glob("requirements*.txt"), *root.glob("requirements/*.txt")]):
        yield from _text(file).splitlines()
    for name in ("setup.cfg", "setup.py"):
        yield from re.split(r"[\n,\[]", _text(root / name))
    with suppress(tomllib.TOMLDecodeError):
        yield from _declared(tomllib.loads(_text(root / "pyproject.toml")))


def _declared(content: dict[str, Any]) -> Iterator[str]:
    project = content.get("project", {})
    if isinstance(project, dict):
        extras = project.get("optional-dependencies", {})
        groups = extras.values() if isinstance(extras, dict) else ()
        for group in (project.get("dependencies", []), *groups):
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


def needs(fix: Fix) -> Version:
    """The oldest PyTorch that has what a fix writes."""
    wanted: Version = (0, 0)
    for edit in fix.edits:
        for name, checked in _CALLED.findall(edit.text):
            wanted = max(wanted, _since(name, bool(checked)))
    return wanted


def _since(name: str, checked: bool) -> Version:
    """The release in which a function of ``torch.accelerator`` has its present form."""
    if name == "get_memory_info":
        return _INFO
    if name == "empty_cache" or name.startswith(("memory_", "max_memory_", "reset_")):
        return _MEMORY
    return _CHECKED if checked or name.endswith("_index") else _FIRST


def fitting(finding: Finding, torch: Version | None) -> Finding:
    """A finding without a fix that the project's PyTorch has not what it takes for."""
    if torch is None or finding.fix is None or needs(finding.fix) <= torch:
        return finding
    return replace(finding, fix=None)
