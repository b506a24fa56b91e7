"""Which file of a project a module is, seen from the file that imports it."""

from __future__ import annotations

import os
from collections.abc import Iterable

#: So far up from a file its own project may import from.
_CLIMB = 12


class Modules:
    """Finds modules by the paths of a project's files; no path of Python's own is asked."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._files = frozenset(paths)
        self._folder = {path: os.path.dirname(path) for path in self._files}
        self._folders: set[str] = set()
        for folder in set(self._folder.values()):
            while folder and folder not in self._folders:
                self._folders.add(folder)
                folder = os.path.dirname(folder)
        self._around: dict[tuple[str, str], list[str]] = {}
        self._found: dict[tuple[str, str], str | None] = {}
        self._tops: dict[str, set[str]] | None = None

    def find(self, module: str, importer: str) -> str | None:
        """The file of a module (``.env``, ``pkg.env``), None if the project does not hold it."""
        folder = self._folder[importer]
        place = (module, folder)
        if place not in self._found:
            self._found[place] = self._search(module, folder)
        return self._found[place]

    def _search(self, module: str, folder: str) -> str | None:
        name = module.lstrip(".")
        level = len(module) - len(name)
        parts = name.split(".") if name else []
        if level:
            for _ in range(level - 1):
                folder = os.path.dirname(folder)
            return self._at(folder, parts)
        for base in self._bases(parts[0], folder):
            found = self._at(base, parts)
            if found is not None:
                return found
        bases = self._packages().get(parts[0], ())
        return self._at(next(iter(bases)), parts) if len(bases) == 1 else None

    def _bases(self, first: str, folder: str) -> list[str]:
        """The folders around a file that hold a module or a folder of that name."""
        place = (first, folder)
        if place not in self._around:
            self._around[place] = found = []
            for _ in range(_CLIMB):
                for base in (folder, f"{folder}/src"):
                    inner = f"{base}/{first}"
                    if f"{inner}.py" in self._files or inner in self._folders:
                        found.append(base)
                above = os.path.dirname(folder)
                if above == folder:
                    break
                folder = above
        return self._around[place]

    def _at(self, base: str, parts: list[str]) -> str | None:
        path = "/".join([base, *parts])
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if file in self._files:
                return file
        return None

    def _packages(self) -> dict[str, set[str]]:
        """The folders that hold a package at the top, by its name."""
        if self._tops is None:
            self._tops = {}
            for folder in set(self._folder.values()):
                above = os.path.dirname(folder)
                inner = os.path.join(above, "__init__.py") in self._files
                if os.path.join(folder, "__init__.py") in self._files and not inner:
                    self._tops.setdefault(os.path.basename(folder), set()).add(above)
        return self._tops


def stem(path: str) -> str:
    """Last part of a file's module name."""
    folder, name = os.path.split(path)
    return os.path.basename(folder) if name == "__init__.py" else name.rpartition(".")[0]
