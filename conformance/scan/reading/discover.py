"""Finds the files to scan below the given paths: Python, notebooks, and what configures them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from conformance.scan.errors import ConfigError
from conformance.scan.reading.ignorefile import Patterns
from conformance.scan.reading.kinds import LARGEST, MOST_JSON, PYTHON, kind_of

_SUFFIXES = PYTHON
#: Folders that hold no source of the project; they are scanned when given by name.
_SKIPPED = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        ".bzr",
        ".eggs",
        ".tox",
        ".nox",
        ".venv",
        ".direnv",
        ".ipynb_checkpoints",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".hypothesis",
        ".conformance_cache",
        "__pycache__",
        "__pypackages__",
        "node_modules",
        "site-packages",
        "build",
        "dist",
    }
)


class Project(Protocol):
    """What is asked of the settings: the folder that paths count from, and what is left out."""

    @property
    def root(self) -> Path: ...

    @property
    def exclude(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Target:
    """A file to scan: where it is, how reports call it, and its path inside the project."""

    path: str
    shown: str
    logical: str


def discover(paths: list[str], project: Project) -> list[Target]:
    """Every file below the paths, sorted, each once.

    ``.gitignore`` counts for what is found, not for files given by name; ``exclude`` counts for
    both. Links to folders are not followed. Raises ConfigError for a path that does not exist.
    """
    excluded = Patterns(project.exclude)
    found: dict[str, Target] = {}
    for given in paths:
        path = Path(given)
        if not os.path.lexists(path):
            raise ConfigError(f"{given!r} does not exist: give a file or a folder to scan")
        full = Path(os.path.abspath(path))
        base = full.parent
        if full.is_dir():
            files: Iterator[str] = _walk(full, project, excluded)
        else:
            files = iter([str(full)])
        for file in files:
            target = _target(file, given, full, base, project)
            if not excluded.match(target.logical, False):
                found.setdefault(file, target)
    return [found[file] for file in sorted(found)]


def _target(file: str, given: str, full: Path, base: Path, project: Project) -> Target:
    logical = _below(file, str(project.root)) or _below(file, str(base)) or file
    inner = _below(file, str(full)) or "."
    shown = given if inner == "." else os.path.normpath(os.path.join(given, inner))
    return Target(file, shown.replace(os.sep, "/"), logical.replace(os.sep, "/"))


def _below(file: str, folder: str) -> str:
    """The way from a folder to what is in it, empty if it is not; both are whole and normal, and
    `os.path.relpath` takes thirty times as long to find that out."""
    start = folder.rstrip(os.sep) + os.sep
    return file[len(start) :] if file.startswith(start) else ""


def _ignores_above(folder: Path) -> list[tuple[str, Patterns]]:
    """The .gitignore files from the repository's top down to above ``folder``."""
    above: list[Path] = []
    for parent in (folder, *folder.parents):
        above.append(parent)
        if (parent / ".git").exists():
            break
    else:
        return []
    result = []
    for parent in reversed(above[1:]):
        patterns = _read_ignores(str(parent))
        if patterns:
            result.append((str(parent), patterns))
    return result


def _read_ignores(folder: str) -> Patterns:
    try:
        with open(os.path.join(folder, ".gitignore"), encoding="utf-8", errors="replace") as file:
            return Patterns(file)
    except OSError:
        return Patterns(())  # none there, or not ours to read


def _ignored(path: str, is_folder: bool, ignores: list[tuple[str, Patterns]]) -> bool:
    for folder, patterns in reversed(ignores):
        relative = path[len(folder) + 1 :].replace(os.sep, "/")
        decision = patterns.decide(relative, is_folder)
        if decision is not None:
            return decision
    return False


def _walk(top: Path, project: Project, excluded: Patterns) -> Iterator[str]:
    root = str(project.root)
    inside = str(top).startswith(root)
    pending: list[tuple[str, list[tuple[str, Patterns]]]] = [(str(top), _ignores_above(top))]
    while pending:
        folder, ignores = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue  # a folder that may not be listed holds nothing that we may read
        if any(entry.name == ".gitignore" for entry in entries):
            ignores = [*ignores, (folder, _read_ignores(folder))]
        if folder != str(top) and any(entry.name == "pyvenv.cfg" for entry in entries):
            continue
        crowded = sum(entry.name.endswith(".json") for entry in entries) > MOST_JSON
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder:
                if entry.name in _SKIPPED or (ignores and _ignored(entry.path, True, ignores)):
                    continue
                if excluded and inside:
                    relative = os.path.relpath(entry.path, root).replace(os.sep, "/")
                    if excluded.decide(relative, True):
                        continue
                pending.append((entry.path, ignores))
            elif entry.name.endswith(_SUFFIXES) or _holds_settings(entry, crowded):
                if ignores and _ignored(entry.path, False, ignores):
                    continue
                if _is_regular(entry):
                    yield entry.path


def _holds_settings(entry: os.DirEntry[str], crowded: bool) -> bool:
    """Whether a file that is not Python is worth opening: not by its name alone, and not data."""
    kind = kind_of(entry.path)
    if not kind or (kind == "json" and crowded):
        return False
    most = LARGEST.get(kind)
    try:
        return most is None or entry.stat().st_size <= most
    except OSError:
        return False  # a link that leads nowhere


def _is_regular(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a file (or a link to one); a looping link is none."""
    try:
        return entry.is_file()
    except OSError:
        return False
