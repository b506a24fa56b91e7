"""Who imports what in a project: names followed to where they are defined, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from conformance.scan.joining.modules import Modules, stem
from conformance.scan.judging.summary import Summary
from conformance.scan.reading.imports import Import

#: A name of a module: the module's file and the name in it.
Name = tuple[str, str]
_DEPTH = 8
#: What so many files import is taken to be reached from anywhere.
MANY = 60


class Imports:
    """The import graph of a project, worked out where it is asked for."""

    def __init__(self, summaries: Mapping[str, Summary]) -> None:
        self._summaries = summaries
        self.modules = Modules(summaries)
        self._locals: dict[str, dict[str, Import]] = {}
        self._stars: dict[str, list[Import]] = {}
        self._index: dict[str, list[tuple[str, str]]] | None = None
        self._read: dict[str, list[tuple[str, Import]]] = {}
        self._loaders: dict[str, dict[str | None, list[tuple[str, Import]]]] = {}
        self._starred: dict[str | None, list[str]] | None = None  # by module: who takes it all

    @property
    def files(self) -> Iterable[str]:
        """Every file of the project."""
        return self._summaries

    def is_hot(self, path: str) -> bool:
        """Whether a file speaks of devices, so that it may know a guard."""
        return self._summaries[path].hot

    def of(self, path: str) -> dict[str, Import]:
        """Imports of a file by the name that they have there (those with ``*`` apart)."""
        if path not in self._locals:
            every = [Import.from_text(text) for text in self._summaries[path].imports]
            self._locals[path] = {item.local: item for item in every if item.name != "*"}
            self._stars[path] = [item for item in every if item.name == "*"]
        return self._locals[path]

    def every(self, path: str) -> Iterator[Import]:
        """All imports of a file, also of what another of them overwrites."""
        return (Import.from_text(text) for text in self._summaries[path].imports)

    def texts(self, path: str) -> tuple[str, ...]:
        """The same, each as its text."""
        return self._summaries[path].imports

    def stars(self, path: str) -> list[Import]:
        """``from MODULE import *`` in a file."""
        self.of(path)
        return self._stars[path]

    def source(self, item: Import, path: str) -> Name | None:
        """The module file and name that an import of a file means, None outside of the project.

        The name is empty for a module.
        """
        if not item.name:
            found = self.modules.find(item.module, path)
            return None if found is None else (found, "")
        inner = item.module + ("" if item.module.endswith(".") else ".") + item.name
        found = self.modules.find(item.module, path)
        if found is not None and item.name in self.of(found) and found != path:
            return self.defined(found, item.name)
        module = self.modules.find(inner, path)
        if module is not None:
            return module, ""
        return None if found is None else self.defined(found, item.name)

    def defined(self, path: str, name: str, depth: int = 0) -> Name:
        """Where a name that a file has comes from: through imports, as far as they are seen."""
        item = self.of(path).get(name)
        if item is None or depth > _DEPTH:
            return path, name
        found = self.modules.find(item.module, path)
        if found is None or found == path:
            return path, name
        return self.defined(found, item.name, depth + 1) if item.name else (found, "")

    def importers(self, target: Name) -> dict[str, set[str]] | None:
        """The files that import a name, with how each spells it; None if they are too many."""
        found: dict[str, set[str]] = {}
        carriers = {target[0]}  # modules that have the name
        waiting = [target]
        while waiting:
            at, name = waiting.pop()
            for path, item in self._named(name):
                if item.name == name and self.source(item, path) in (target, (at, name)):
                    spellings = found.setdefault(path, set())
                    if item.local not in spellings:
                        spellings.add(item.local)
                        carriers.add(path)
                        if item.local != name:
                            waiting.append((path, item.local))
            if len(found) > MANY:
                return None
        return self._by_module(found, carriers, target[1])

    def _by_module(
        self, found: dict[str, set[str]], carriers: set[str], name: str
    ) -> dict[str, set[str]] | None:
        """The same with those that import a module which has the name."""
        if self._starred is None:
            self._starred = {}
            for path, item in self._named("*"):
                module = self.modules.find(item.module, path)
                self._starred.setdefault(module, []).append(path)
        for carrier in carriers:
            for path in self._starred.get(carrier, ()):
                found.setdefault(path, set()).add(name)
            for path, item in self.loaders(carrier):
                if item.name != "*" and self.source(item, path) == (carrier, ""):
                    found.setdefault(path, set()).add(f"{item.local}.{name}")
            if len(found) > MANY:
                return None
        return found

    def loaders(self, module: str) -> list[tuple[str, Import]]:
        """Every import that loads a module's file, from any other file."""
        word = stem(module)
        if word not in self._loaders:
            held: dict[str | None, list[tuple[str, Import]]] = {}
            self._loaders[word] = held
            for path, item in dict.fromkeys(self._named(word)):
                inner = item.module + ("" if item.module.endswith(".") else ".") + item.name
                found = {self.modules.find(item.module, path)}
                if item.name:
                    found.add(self.modules.find(inner, path))
                for target in found - {None, path}:
                    held.setdefault(target, []).append((path, item))
        return self._loaders[word].get(module, [])

    def _named(self, word: str) -> Iterable[tuple[str, Import]]:
        """Imports that speak of a word: as the name, or at the end of the module."""
        if self._index is None:
            self._index = {}
            for path, summary in self._summaries.items():
                for text in summary.imports:
                    module, name, _ = text.split(":")
                    self._index.setdefault(name, []).append((path, text))
                    last = module.rpartition(".")[2].lstrip(">")
                    if last and last != name:
                        self._index.setdefault(last, []).append((path, text))
        held = self._read.get(word)
        if held is None:
            found = self._index.get(word, ())
            held = self._read[word] = [(path, Import.from_text(text)) for path, text in found]
        return held
