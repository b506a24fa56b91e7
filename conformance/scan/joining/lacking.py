"""What a project cannot import without CUDA: extensions that it builds for CUDA, packages that have
no other build, and every file that imports one of these, or such a file, as it is imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from conformance.scan.joining.imports import Imports
from conformance.scan.knowing.packages import KERNELS, MISSING
from conformance.scan.knowing.paths import path_facts
from conformance.scan.knowing.reach import builds_for_cuda
from conformance.scan.reading.imports import Import

_NEEDED = MISSING | KERNELS
#: ``CUDAExtension(name="vren", ...)``, also where the class stands under a name of the file.
_BUILT = re.compile(r"(?:CUDAExtension|\bextension)\(\s*(?:name\s*=\s*)?[\"']([\w.]+)[\"']")
_NAMED = re.compile(r"(?:^|_)cuda(?:_|$)")
_QUOTES = (b'"""', b"'''")


class Lacking:
    """The files that cannot be imported where there is no CUDA.

    ``extensions`` are the modules, by the file that imports them, that the project builds for CUDA
    or that are named for it and that no file of the project is; ``roots`` import what is missing
    themselves, and ``files`` are all that are cut off, through other files too.
    """

    def __init__(
        self,
        imports: Imports,
        read: Callable[[str], bytes],
        logical: Mapping[str, str],
        is_test: Callable[[str], bool],
    ) -> None:
        self._imports = imports
        self._read = read
        self._logical = logical
        self._is_test = is_test
        self._built = frozenset(self._names())
        self.extensions: dict[str, set[str]] = {}
        self.roots = frozenset(self._roots())
        self.files = set(self.roots)
        self._spread()

    def _names(self) -> Iterator[str]:
        """Extensions that set-up files build for CUDA and for nothing else."""
        for path in self._imports.files:
            if path.endswith("/setup.py"):
                text = self._read(path).decode("utf-8", "replace")
                if builds_for_cuda(text):
                    yield from _BUILT.findall(text)

    def _roots(self) -> Iterator[str]:
        for path in self._imports.files:
            for item in self._imports.at_margin(path):
                missing = self._missing(path, item)
                if missing is None or not self._is_code(path, item):
                    continue
                if missing:
                    self.extensions.setdefault(path, set()).add(missing)
                yield path

    def _missing(self, path: str, item: Import) -> str | None:
        """The extension that an import wants, empty for anything else that CUDA alone has, None
        where it can be had anywhere."""
        top = item.module.partition(".")[0]
        for name in (item.module, f"{item.module}.{item.name}"):
            if name in self._built:
                return name
        named = "cuda" in item.module or "cuda" in item.name
        if top not in _NEEDED and not named:
            return None
        source = self._imports.source(item, path)
        if source is None:
            return "" if top in _NEEDED else top if _NAMED.search(top) else None
        # The tests of a module that is named for CUDA.
        tests = named and self._is_test(path) and not self._is_test(source[0])
        guard = path_facts(self._logical[source[0]]).guard("cuda") if tests else None
        return None if guard is None else ""

    def _is_code(self, path: str, item: Import) -> bool:
        """Whether an import stands in code: summaries take one in a docstring for one as well."""
        module = re.escape(item.module.encode())
        match = re.search(rb"(?m)^(?:from|import)[ \t]+" + module, data := self._read(path))
        before = data[: match.start()] if match is not None else b""
        return match is not None and not any(before.count(mark) % 2 for mark in _QUOTES)

    def _spread(self) -> None:
        waiting = sorted(self.roots)
        while waiting:
            path = waiting.pop()
            for user, item in self._imports.loaders(path):
                if user not in self.files and not item.inner and self._is_code(user, item):
                    self.files.add(user)
                    waiting.append(user)
