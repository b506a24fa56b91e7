"""What other files of the project say about a file: values that it imports, who reaches it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from conformance.scan.knowing.facts import Facts, known
from conformance.scan.knowing.scopes import Bound, Scope, Scopes
from conformance.scan.reading.nodes import parts_of
from conformance.scan.reading.prefilter import mentions

#: Before the text of a value: it is what a function returns.
FUNCTION = "()"


@dataclass(frozen=True, slots=True)
class Foreign:
    """All that the rest of the project adds to one file. Names are spelled as the file does.

    ``values`` are expressions behind imported names (several lines: several bindings; after
    :data:`FUNCTION`, what a function returns). ``parameters`` are those of functions that are
    given a device, each with the place that it reaches there, if any. ``placed`` are the file's
    own constants that others place something with, ``fields`` the names under which they ask
    objects for what they place, ``reached`` its own functions that others call
    without a guard, ``refusing`` functions that do not come back without CUDA, ``backends`` those
    without which it is not imported, and ``extensions`` modules that the project builds for CUDA.
    """

    values: tuple[tuple[str, str], ...] = ()
    parameters: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    placed: tuple[tuple[str, str], ...] = ()
    reached: tuple[str, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    refusing: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Identity, for the cache; empty when nothing is said."""
        if self == ALONE:
            return ""
        return hashlib.blake2b(repr(self).encode(), digest_size=12).hexdigest()

    @property
    def names(self) -> set[str]:
        """Last parts of the imported names whose values are known."""
        return {name.rpartition(".")[2] for name, _ in self.values}

    def spoken_of(self, data: bytes) -> Foreign:
        """The same without the values that a file does not speak of."""
        kept = tuple((name, text) for name, text in self.values if mentions(data, (name,)))
        called = tuple(name for name in self.refusing if mentions(data, (name,)))
        same = len(kept) == len(self.values) and len(called) == len(self.refusing)
        return self if same else replace(self, values=kept, refusing=called)

    def facts(self) -> Facts:
        """What is known wherever the file runs."""
        return known("name", *self.backends)

    def bind(self, scopes: Scopes) -> None:
        """Let imported names stand for the values that they have in their own modules."""
        scopes.has_foreign = bool(self.values)
        for name, text in self.values:
            bounds = list(_bounds(name, text, scopes))
            scopes.module.names.setdefault(name, [])
            for scope in scopes.of.copy().values():
                held = scope.names.get(name)
                if held is not None and all(bound.kind == "import" for bound in held):
                    scope.names[name] = bounds


ALONE = Foreign()


def _bounds(name: str, text: str, scopes: Scopes) -> Iterator[Bound]:
    for line in text.split("\n"):
        value = ast.parse(line.removeprefix(FUNCTION), mode="eval").body
        for part in parts_of(value):
            if hasattr(part, "lineno"):
                part.lineno = part.end_lineno = 0  # type: ignore[attr-defined]
        if not line.startswith(FUNCTION):
            yield Bound("value", value=value)
            continue
        function = ast.parse("def f(): pass").body[0]
        assert isinstance(function, ast.FunctionDef)
        function.name = name.rpartition(".")[2]
        function.body = [ast.Return(value)]
        scopes.of[id(function)] = Scope(function, "function", scopes.module, function.name)
        yield Bound("def", node=function)
