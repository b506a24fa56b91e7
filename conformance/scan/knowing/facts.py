"""What is known about the backend at a point of the program, and how conditions teach it."""

from __future__ import annotations

import ast
from dataclasses import dataclass

#: Strength of what a guard says, weakest first: one that was asked for "the GPU" (which a Mac has
#: too) allows nothing, and only says where a choice is made; a probe asks whether the backend exists, a
#: ``try`` expects the failure, a name or marker declares the code to be for the backend, and a
#: test looks at the device in hand.
_STRENGTH = {"asked": -1, "probe": 0, "try": 1, "name": 2, "test": 3}
#: Stands for every backend: inside a ``try`` that expects the failure.
ANY = "*"


@dataclass(frozen=True, slots=True)
class Guard:
    """Why a backend is known, and the expression that says so."""

    kind: str
    node: ast.AST | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """A point in the lattice: backends known to be in use and backends ruled out.

    Of ``one_of``, what "CUDA or XPU" teaches, one is in use: the last that is not ruled out.
    """

    known: dict[str, Guard]
    excluded: dict[str, Guard]
    one_of: frozenset[str] = frozenset()

    def both(self, other: Facts) -> Facts:
        """Facts when this and the other hold (the stronger guard of a backend wins)."""
        if not other.known and not other.excluded and not other.one_of:
            return self
        if not self.known and not self.excluded and not self.one_of:
            return other
        one_of = other.one_of or self.one_of
        excluded = _union(self.excluded, other.excluded)
        known = _union(self.known, other.known)
        left = one_of.difference(excluded)
        if len(left) == 1:
            known.setdefault(min(left), Guard("test"))
        return Facts(known, excluded, one_of)

    def either(self, other: Facts) -> Facts:
        """Facts that hold whichever of the two does."""
        if self is NOTHING or other is NOTHING:
            return NOTHING
        known = _common(self.known, other.known)
        one_of = self.one_of if self.one_of == other.one_of else frozenset()
        if not known and self.known and other.known:
            one_of = frozenset(self.known) | frozenset(other.known)
        return Facts(known, _common(self.excluded, other.excluded), one_of)

    def guard(self, backend: str) -> Guard | None:
        """The guard under which a backend may be used here, None when there is none."""
        # ROCm's builds call their devices cuda; "hip" is only another name there.
        name = "cuda" if backend == "hip" else backend
        found = self.known.get(name)
        if found is None or found.kind == "asked":
            return self.known.get(ANY)
        return found

    def seen_at(self, node: ast.AST) -> Facts:
        """The same facts, learnt at another place: where a flag is used, not where it is set."""
        return Facts(
            {backend: Guard(guard.kind, node) for backend, guard in self.known.items()},
            {backend: Guard(guard.kind, node) for backend, guard in self.excluded.items()},
            self.one_of,
        )

    def declared(self, node: ast.AST) -> Facts:
        """The same facts with mere probes taken for declarations."""
        known = {
            backend: Guard("name", node) if guard.kind == "probe" else guard
            for backend, guard in self.known.items()
        }
        return Facts(known, self.excluded, self.one_of)

    def without(self, *backends: str) -> Facts:
        """Facts with these backends ruled out."""
        guard = Guard("test")
        return self.both(Facts({}, dict.fromkeys(backends, guard)))

    def knowing(self, kind: str, *backends: str, node: ast.AST | None = None) -> Facts:
        """Facts with these backends known."""
        return self.both(Facts(dict.fromkeys(backends, Guard(kind, node)), {}))


def _union(left: dict[str, Guard], right: dict[str, Guard]) -> dict[str, Guard]:
    result = dict(left)
    for backend, guard in right.items():
        held = result.get(backend)
        if held is None or _STRENGTH[guard.kind] > _STRENGTH[held.kind]:
            result[backend] = guard
    return result


def _common(left: dict[str, Guard], right: dict[str, Guard]) -> dict[str, Guard]:
    return {backend: guard for backend, guard in left.items() if backend in right}


NOTHING = Facts({}, {})
#: What a test teaches when it is true, and when it is false.
Pair = tuple[Facts, Facts]
UNKNOWN: Pair = (NOTHING, NOTHING)


def known(kind: str, *backends: str, node: ast.AST | None = None) -> Facts:
    """Facts that say only that these backends are in use."""
    return Facts(dict.fromkeys(backends, Guard(kind, node)), {})


def excluded(*backends: str, node: ast.AST | None = None) -> Facts:
    """Facts that say only that these backends are not in use."""
    return Facts({}, dict.fromkeys(backends, Guard("test", node)))
