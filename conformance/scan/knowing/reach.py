"""Code that is only reached with CUDA: helpers called where it is known, packages of kernels."""

from __future__ import annotations

import ast
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache

from conformance.scan.findings import Finding, Severity
from conformance.scan.knowing.facts import ANY
from conformance.scan.knowing.packages import KERNELS
from conformance.scan.knowing.point import Point
from conformance.scan.knowing.scopes import FunctionNode, blocks_of
from conformance.scan.knowing.vocabulary import ACCELERATORS
from conformance.scan.reading.source import Source

#: A call: whether CUDA is known there, and the functions and classes that it stands in.
Call = tuple[bool, tuple[str, ...]]
Record = Callable[[Point, ast.Call], None]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_TESTS = re.compile(r"(?:^|/)(?:test_[^/]*|[^/]*_test|conftest)\.py\Z")
#: Long texts and comments, and short texts, which are kept: a name in one may be looked up.
_TEXTS = re.compile(
    r"(\"{3}|'{3}).*?\1|#[^\n]*|(\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')", re.DOTALL
)
_KERNELS = re.compile(rf"(?m)^(?:from|import)[ \t]+(?:{'|'.join(sorted(KERNELS))})\b")
_IMPORTED = re.compile(r"(?:from|import) (\w+)")
_RELATIVE = re.compile(r"(?m)^from \.(\w*) import (\w+)")


def in_kernel_package(path: str) -> bool:
    """Whether a file cannot be imported before a language of kernels for CUDA was.

    So it is where the ``__init__`` of a package around it imports one, or a module that imports
    one; those two files themselves are not meant.
    """
    folder, name = os.path.split(path)
    package = _kernel_package(folder)
    return package is not None and (package[0] != folder or name not in package[1])


def in_extension(path: str, root: str) -> bool:
    """Whether a folder below the project's builds extensions for CUDA, and the file is in it: a
    package of its own that was copied in, with its tests and examples."""
    folder = os.path.dirname(path)
    while len(folder) > len(root) and folder.startswith(root):
        if _builds_cuda(folder):
            return True
        folder = os.path.dirname(folder)
    return False


@lru_cache(maxsize=1024)
def _builds_cuda(folder: str) -> bool:
    return builds_for_cuda(_text(os.path.join(folder, "setup.py")) or "")


def builds_for_cuda(text: str) -> bool:
    """Whether a set-up file builds its extensions for CUDA, or else refuses to build them."""
    calls = text.count("CUDAExtension(") - text.count("CppExtension(")
    return calls > 0 or ("= CUDAExtension" in text and "raise " in text)


@lru_cache(maxsize=1024)
def _kernel_package(folder: str) -> tuple[str, frozenset[str]] | None:
    """The package that holds a folder and imports such a language, and the files that do it."""
    text = _text(os.path.join(folder, "__init__.py"))
    if text is None:
        return None
    if _KERNELS.search(text):
        return folder, frozenset({"__init__.py"})
    for module, first in _RELATIVE.findall(text):
        name = f"{module or first}.py"
        if _KERNELS.search(_text(os.path.join(folder, name)) or ""):
            return folder, frozenset({"__init__.py", name})
    parent = os.path.dirname(folder)
    return _kernel_package(parent) if parent != folder else None


@lru_cache(maxsize=256)
def is_own_package(root: str, imported: str) -> bool:
    """Whether an import statement is of a package that the project at ``root`` itself holds."""
    match = _IMPORTED.match(imported)
    return match is not None and any(
        os.path.isfile(os.path.join(root, folder, match[1], "__init__.py"))
        for folder in ("", "src")
    )


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return None


def in_use(point: Point) -> set[str]:
    """Accelerators that are known to be in use at a call."""
    known = point.facts.known
    return {name for name, guard in known.items() if guard.kind != "asked" and name in ACCELERATORS}


class Helpers:
    """The private functions of one file that findings lie in, and where they are called.

    Private is what begins with an underscore, what is defined inside a function, what `__all__`
    leaves out where there is one, and in a file of tests all that is no test. A helper counts as
    guarded when every mention of it in the file is a call where CUDA is known (in a file of
    tests, also when it is handed to a call there): one that is mentioned otherwise, or called
    from a place that was not looked at, may be reached from anywhere.
    """

    def __init__(
        self,
        findings: Iterable[Finding],
        tree: ast.Module,
        source: Source,
        reached: Iterable[str] = (),
    ) -> None:
        """``reached`` are those that another file calls without a guard."""
        lines = sorted({f.line for f in findings if f.severity > Severity.NOTE})
        self._reached = frozenset(reached)
        self._in_tests = _TESTS.search(source.path) is not None
        self._source = source
        self._text: str | None = None
        self._offered = _offered(tree) if lines else None
        self._counted: dict[str, tuple[int, int]] = {}
        self.names: set[str] = set()
        self.calls: dict[str, list[Call]] = {}
        self.idle: set[str] = set()
        for node, local, method in _owners(tree.body, lines) if lines else ():
            hidden = (local and not method) or (self._in_tests and is_private(node.name))
            if self._is_candidate(node.name, local):
                self.names.add(node.name)
            elif hidden and self._is_idle(node):
                self.idle.add(node.name)

    def _mentions(self, name: str) -> tuple[int, int]:
        """How often the code speaks of a name, and how often with a bracket behind it."""
        held = self._counted.get(name)
        if held is None:
            if self._text is None:
                self._text = _TEXTS.sub(lambda match: match[2] or "", self._source.text)
            held = self._counted[name] = _count(self._text, name)
        return held

    def _is_candidate(self, name: str, local: bool) -> bool:
        if name in self._reached:
            return False
        if self._in_tests and not name.startswith(("test", "Test", "__")):
            return self._mentions(name)[0] > 1
        if name.startswith("__") or not (local or self._is_left_out(name)):
            return False
        every, called = self._mentions(name)
        return 1 < called == every

    def _is_left_out(self, name: str) -> bool:
        return is_private(name) or (self._offered is not None and name not in self._offered)

    def _is_idle(self, node: Definition) -> bool:
        """Whether nothing in its file runs a function that no other file knows."""
        plain = isinstance(node, FunctionNode) and all(
            isinstance(part, ast.Name) and part.id == "staticmethod" for part in node.decorator_list
        )
        return plain and self._mentions(node.name)[0] == 1

    def recorder(self) -> Record:
        """A hook that writes down where the helpers are called, from the beginning."""
        self.calls = {}

        def record(point: Point, node: ast.Call) -> None:
            function = node.func
            mentioned = [function]
            if self._in_tests:
                mentioned += [*node.args, *(keyword.value for keyword in node.keywords)]
            for part in mentioned:
                name = getattr(part, "attr", getattr(part, "id", ""))
                if name in self.names:
                    # What a `try` expects to fail is called to find out.
                    known = "cuda" in in_use(point) or ANY in point.facts.known
                    owners = tuple(point.scope.qualname.split("."))
                    self.calls.setdefault(name, []).append((known, owners))

        return record

    def widen(self) -> bool:
        """Take in the helpers that call helpers without a guard; False when there are no more."""
        callers = {
            owner
            for seen in self.calls.values()
            for known, owners in seen
            if not known
            for owner in owners
        }
        new = {name for name in callers - self.names - {""} if self._is_candidate(name, False)}
        self.names |= new
        return bool(new)

    def milder(self, findings: list[Finding]) -> list[Finding]:
        """Findings with those inside of guarded helpers turned into notes."""
        whole = {
            name: seen
            for name, seen in self.calls.items()
            if self._mentions(name)[0] == len(seen) + 1
        }
        guarded: set[str] = set()
        grown = True
        while grown:
            new = {
                name
                for name, seen in whole.items()
                if all(known or not guarded.isdisjoint(owners) for known, owners in seen)
            }
            grown = new != guarded
            guarded = new
        guarded |= self.idle
        return [
            finding
            if finding.severity == Severity.NOTE or guarded.isdisjoint(finding.scope.split("."))
            else replace(finding, severity=Severity.NOTE)
            for finding in findings
        ]


def _count(text: str, name: str) -> tuple[int, int]:
    """How often a text holds a word, and how often with a bracket behind it.

    By hand: a regular expression that begins with a word's boundary takes several times as long.
    """
    every = called = 0
    at = text.find(name)
    while at >= 0:
        end = at + len(name)
        before, after = text[at - 1 : at], text[end : end + 4]
        if not (_in_word(before) or _in_word(after[:1])) and after != " as ":
            # What is imported under another name is something else.
            every += 1
            called += after[:1] == "("
        at = text.find(name, end)
    return every, called


def _in_word(character: str) -> bool:
    return character == "_" or character.isalnum()


def is_private(name: str) -> bool:
    """Whether a name says that it is not for other files."""
    return name.startswith("_") and not name.startswith("__")


def _offered(tree: ast.Module) -> set[str] | None:
    """The names in `__all__`, None where there is none or its names cannot be seen."""
    for node in tree.body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id="__all__")], value=ast.List() | ast.Tuple() as all_
            ):
                names = {n.value for n in all_.elts if isinstance(n, ast.Constant)}
                return {name for name in names if isinstance(name, str)}
    return None


def _owners(
    body: Iterable[ast.stmt], lines: list[int], local: bool = False, method: bool = False
) -> Iterator[tuple[Definition, bool, bool]]:
    """Functions and classes that some of the lines lie in, whether a function holds them, and
    whether a class does so first."""
    for node in body:
        last = node.end_lineno or node.lineno
        at = bisect_left(lines, node.lineno)
        if at == len(lines) or lines[at] > last:
            continue
        if isinstance(node, FunctionNode | ast.ClassDef):
            yield node, local, method
        inner = local or isinstance(node, FunctionNode)
        held = isinstance(node, ast.ClassDef) or (method and not isinstance(node, FunctionNode))
        for block in blocks_of(node):
            yield from _owners(block, lines, inner, held)
