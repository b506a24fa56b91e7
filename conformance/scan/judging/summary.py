"""What one file tells the rest of its project: kept in the cache, joined without its bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Line, column (from 1), function or class, parameter and its place of a reported default.
Default = tuple[int, int, str, str, int]


@dataclass(frozen=True, slots=True)
class Summary:
    """``imports`` are texts of :class:`Import`; ``offers`` names with what they stand for
    (:class:`Foreign` says how); ``passed`` functions that are given a device, and as which parameter, ``unplaced``
    constants that hold one, ``defaults`` the findings that a caller can override, ``methods``
    those that findings lie in and that only calls by name reach, ``fields`` the names under which
    objects are given one, and ``placing`` those under which they are asked for it, ``refusing`` the functions that do not
    come back without CUDA, ``saves`` where what it saves lies. ``hot`` is a file that speaks of
    devices at all; any other knows no guard."""

    imports: tuple[str, ...] = ()
    offers: dict[str, str] = field(default_factory=dict)
    passed: tuple[tuple[str, str], ...] = ()
    unplaced: tuple[str, ...] = ()
    defaults: tuple[Default, ...] = ()
    hot: bool = False
    methods: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    placing: dict[str, str] = field(default_factory=dict)
    refusing: tuple[str, ...] = ()
    saves: tuple[str, ...] = ()

    def to_row(self) -> list[Any]:
        """Plain values, as few as there are."""
        row: list[Any] = [list(self.imports), self.offers]
        row += [[list(pair) for pair in self.passed], list(self.unplaced)]
        row += [[list(default) for default in self.defaults], int(self.hot)]
        row += [list(self.methods), list(self.fields), self.placing]
        row += [list(self.refusing), list(self.saves)]
        while row and not row[-1]:
            row.pop()
        return row

    @classmethod
    def from_row(cls, row: list[Any]) -> Summary:
        """Inverse of :meth:`to_row`; raises TypeError or ValueError on a bad row."""
        none: list[Any] = [[], {}, [], [], [], 0, [], [], {}, [], []]
        imports, offers, passed, unplaced, defaults, hot, *named = [*row, *none[len(row) :]]
        return cls(
            tuple(imports),
            dict(offers),
            tuple((str(a), str(b)) for a, b in passed),
            tuple(unplaced),
            tuple((int(a), int(b), str(c), str(d), int(e)) for a, b, c, d, e in defaults),
            bool(hot),
            tuple(named[0]),
            tuple(named[1]),
            dict(named[2]),
            tuple(named[3]),
            tuple(named[4]),
        )


EMPTY = Summary()


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function: what is known to be in use there, the function that it stands in
    (``""`` for the module), how many arguments it gives by place (-1: not to be seen), and which
    by name."""

    known: tuple[str, ...]
    owner: str
    places: int
    names: tuple[str, ...]


@dataclass(slots=True)
class Report:
    """What a second look at a file found about some names: their calls, whether those are all its
    mentions, how inner imports are guarded (None: for types only), where names are placed, and
    what its own functions do with their parameters (``*`` before one that has no place)."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    otherwise: set[str] = field(default_factory=set)
    imports: dict[str, list[tuple[str, ...] | None]] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    forwards: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)

    def to_row(self) -> list[Any]:
        """Plain values for the cache."""
        calls = {
            name: [[list(c.known), c.owner, c.places, list(c.names)] for c in every]
            for name, every in self.calls.items()
        }
        handed = [self.parameters, self.forwards]
        return [calls, sorted(self.otherwise), self.imports, self.used, *handed]

    @classmethod
    def from_row(cls, row: list[Any]) -> Report:
        """Inverse of :meth:`to_row`; raises TypeError, ValueError or AttributeError on a bad row."""
        calls, otherwise, imports, used, parameters, forwards = row
        return cls(
            {
                name: [Call(tuple(k), str(o), int(p), tuple(n)) for k, o, p, n in every]
                for name, every in calls.items()
            },
            set(otherwise),
            {
                name: [None if known is None else tuple(known) for known in every]
                for name, every in imports.items()
            },
            dict(used),
            {name: [(str(a), str(b)) for a, b in given] for name, given in parameters.items()},
            {
                name: [(str(a), str(b), str(c)) for a, b, c in every]
                for name, every in forwards.items()
            },
        )
