"""What a project cannot import without CUDA: extensions that it builds for CUDA, packages that have
no other build, and every file that imports one of these, or such a file, as it is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping

from conformance.scan.joining.imports import Imports
from conformance.scan.joining.modules import stem
from conformance.scan.knowing.packages import KERNELS, MISSING
from conformance.scan.knowing.paths import path_facts
from conformance.scan.knowing.reach import builds_for_cuda
from conformance.scan.reading.imports import Import
from conformance.scan.reading.nodes import parts_of
from conformance.scan.reading.parser import parsed

_NEEDED = MISSING | KERNELS
#: ``CUDAExtension(name="vren", ...)``, also where the class stands under a name of the file.
_BUILT = re.compile(r"(?:CUDAExtension|\bextension)\(\s*(?:name\s*=\s*)?[\"']([\w.]+)[\"']")
_NAMED = re.compile(r"(?:^|_)cuda(?:_|$)")
_QUOTES = (b'"""', b"'''")
#: What compiles an extension as the program runs.
_COMPILER = "torch.utils.cpp_extension"
_COMPILED = re.compile(rb"(?m)^\w+[ \t]*=[ \t]*(?:[\w.]+\.)?load(?:_inline)?\(")


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
        # A project may put a folder of its own among those that Python looks into.
        self._stems = frozenset(stem(path) for path in imports.files)
        self.extensions: dict[str, set[str]] = {}
        self.roots = set(self._roots())
        self.roots.update(self._trying())
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
            for text in self._imports.texts(path):
                if text.startswith(">") or not self._may_lack(text):
                    continue  # behind a test or in a function; or one of the many others
                item = Import.from_text(text)
                missing = self._missing(path, item)
                if missing is None or not self._is_code(path, item):
                    continue
                if missing:
                    self.extensions.setdefault(path, set()).add(missing)
                yield path
        for path in self._compiling():
            if any(map(_is_of_cuda, parsed(self._read(path)).body)):
                yield path

    def _may_lack(self, text: str) -> bool:
        """Whether an import can be of something that CUDA alone has, by its text."""
        module, name, _ = text.split(":")
        named = "cuda" in text or module.partition(".")[0] in _NEEDED
        return named or not self._built.isdisjoint((module, f"{module}.{name}"))

    def _compiling(self) -> Iterator[str]:
        """Files that can compile an extension."""
        for path in self._imports.files:
            if any(_COMPILER in text.replace(":", ".") for text in self._imports.texts(path)):
                yield path

    def _trying(self) -> Iterator[str]:
        """Files that import an extension, or else compile it."""
        for path in self._imports.files if self._built else ():
            held = self._imports.every(path)
            if path not in self.roots and any(
                item.inner and self._wanted(item) is not None for item in held
            ):
                tree = parsed(self._read(path))
                if any(self._falls_back(path, s) for s in tree.body if isinstance(s, ast.Try)):
                    yield path

    def _falls_back(self, path: str, attempt: ast.Try) -> bool:
        """Whether every way through a ``try`` needs an extension, built before or compiled now."""
        items = {(i.module, i.name): i for i in self._imports.every(path)}
        tried = [items[key] for key in _imported(attempt.body) if key in items]
        return (
            bool(attempt.handlers)
            and any(self._wanted(item) is not None for item in tried)
            and all(self._compiles(path, handler, items) for handler in attempt.handlers)
        )

    def _compiles(
        self, path: str, handler: ast.ExceptHandler, items: Mapping[tuple[str, str], Import]
    ) -> bool:
        sources = (
            self._imports.source(items[k], path) for k in _imported(handler.body) if k in items
        )
        if any(source is not None and source[0] in self.roots for source in sources):
            return True
        called = (part.func for part in parts_of(handler) if isinstance(part, ast.Call))
        return any(getattr(f, "attr", getattr(f, "id", "")) == "load" for f in called) and any(
            item.module == _COMPILER for item in items.values()
        )

    def _wanted(self, item: Import) -> str | None:
        """The extension of the project's own that an import is of, if it is of one."""
        names = (item.module or item.name, f"{item.module}.{item.name}")
        return next((name for name in names if name in self._built), None)

    def behind(self, path: str) -> Iterator[str]:
        """Modules that a file imports behind a test or in a function, and that are cut off: what
        follows such an import needs CUDA as well."""
        if path in self.files:
            return
        for item in self._imports.every(path):
            if item.inner and not item.module.startswith("."):
                source = self._imports.source(item, path)
                loaded = self._imports.modules.find(item.module, path)
                if loaded in self.files or (source is not None and source[0] in self.files):
                    yield item.module or item.name

    def _missing(self, path: str, item: Import) -> str | None:
        """The extension that an import wants, empty for anything else that CUDA alone has, None
        where it can be had anywhere."""
        top = item.module.partition(".")[0]
        wanted = self._wanted(item)
        if wanted is not None:
            return wanted
        named = "cuda" in item.module or "cuda" in item.name
        if top not in _NEEDED and not named:
            return None
        source = self._imports.source(item, path)
        if source is None:
            if top in _NEEDED:
                return ""
            return top if _NAMED.search(top) and top not in self._stems else None
        # The tests of a module that is named for CUDA, and loads something as it is imported.
        tests = named and self._is_test(path) and not self._is_test(source[0])
        guard = path_facts(self._logical[source[0]]).guard("cuda") if tests else None
        loads = guard is not None and _COMPILED.search(self._read(source[0])) is not None
        return "" if loads else None

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


def _is_of_cuda(statement: ast.stmt) -> bool:
    """``ops = load(name, [..., "ops.cu"])``: compiled as the module is imported, for CUDA."""
    match statement:
        case ast.Assign(value=ast.Call(func=function) as call):
            name = getattr(function, "attr", getattr(function, "id", ""))
        case _:
            return False
    texts = [part.value for part in parts_of(call) if isinstance(part, ast.Constant)]
    asks = any(k.arg in ("with_cuda", "cuda_sources", "extra_cuda_cflags") for k in call.keywords)
    return name in ("load", "load_inline") and (
        asks or any(isinstance(text, str) and text.endswith((".cu", ".cuh")) for text in texts)
    )


def _imported(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Modules and names that some statements import, as :class:`Import` spells them."""
    for statement in body:
        for part in parts_of(statement):
            if isinstance(part, ast.Import):
                yield from ((alias.name, "") for alias in part.names)
            elif isinstance(part, ast.ImportFrom):
                module = "." * part.level + (part.module or "")
                yield from ((module, alias.name) for alias in part.names)
