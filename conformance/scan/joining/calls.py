"""Who calls a function of a project, wherever it is, and what is known there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from conformance.scan.joining.imports import Imports, Name
from conformance.scan.judging.summary import Call, Report

#: Calls further from a guard than so many steps count as reached from anywhere.
_STEPS = 6


@dataclass(slots=True)
class _Callers:
    """Calls of one function with the files that they stand in; ``open`` if there may be more."""

    calls: list[tuple[str, Call]] = field(default_factory=list)
    open: bool = False
    #: Other files hand the class on, to calls that are not seen.
    handed: bool = False
    #: Its own file does so, or a decorator.
    marked: bool = False


class Calls:
    """The calls of the functions that findings lie in, followed up to where something is known."""

    def __init__(
        self,
        imports: Imports,
        reports: Callable[[Mapping[str, Iterable[str]]], Sequence[Report]],
        backends: Callable[[str], frozenset[str]],
        is_test: Callable[[str], bool],
        speakers: Callable[[Iterable[str], Iterable[str]], Mapping[str, list[str]]],
    ) -> None:
        """``speakers`` are, by method, those of some files that speak of it."""
        self._imports = imports
        self._reports = reports
        self._backends = backends
        self._is_test = is_test
        self._speakers = speakers
        self._users: dict[Name, set[str]] = {}  # of methods: the files that were asked
        self._callers: dict[Name, _Callers] = {}
        self._known: dict[Name, frozenset[str]] = {}

    def follow(self, targets: Iterable[Name], defaults: Iterable[Name]) -> None:
        """Look up the calls of these functions, and of those that call them unguarded; of those
        with defaults every call, to see what it gives."""
        every = frozenset(defaults)
        waiting: set[Name] = set(every.union(targets))
        for _ in range(_STEPS):
            self._look_up(sorted(waiting), every)
            waiting = {
                owner
                for target in waiting
                if not self._callers[target].open
                for owner in self._unguarded(target)
            } - self._callers.keys()
            if not waiting:
                break
        self._settle()
        if self._confirm():
            self._known.clear()
            self._settle()

    def guarded(self, target: Name) -> frozenset[str]:
        """Accelerators that are known to be in use wherever a function is called, by whomever."""
        return self._known.get(target, frozenset())

    def overridden(self, target: Name, parameter: str, place: int) -> bool:
        """Whether every call gives a parameter, so that its default is never used, as far as calls
        are seen: a class in a table of classes is made somewhere else."""
        callers = self._callers.get(target)
        if callers is None or (callers.open and not (callers.handed or callers.marked)):
            return False
        if not callers.handed and not self._has_callers(callers):
            return False
        return all(parameter in call.names or 0 <= place < call.places for _, call in callers.calls)

    def _has_callers(self, callers: _Callers) -> bool:
        return any(not self._is_test(path) for path, _ in callers.calls)

    def _look_up(self, targets: list[Name], every: frozenset[Name]) -> None:
        asked: dict[str, dict[str, list[Name]]] = {}  # by file: how it spells which targets
        for target in targets:
            self._callers[target] = callers = _Callers()
            users = self._users_of(target)
            if users is None or (target not in every and self._is_used_cold(target, users)):
                # So many, or a file that knows no guard: no need to look into it.
                callers.open = True
                continue
            for path, spellings in users.items():
                for text in spellings:
                    asked.setdefault(path, {}).setdefault(text, []).append(target)
        asked = {path: asked[path] for path in sorted(asked)}
        for (path, names), report in zip(asked.items(), self._reports(asked), strict=True):
            for text, meant in names.items():
                for target in meant:
                    callers = self._callers[target]
                    if text in report.otherwise:
                        callers.open = True
                        made = target[1][:1].isupper()
                        callers.handed |= made and path != target[0] and not self._is_test(path)
                        callers.marked |= made and path == target[0]
                    callers.calls += [(path, call) for call in report.calls.get(text, ())]

    def _is_used_cold(self, target: Name, users: Mapping[str, set[str]]) -> bool:
        """Whether a file speaks of a function that speaks of no device: it knows no guard."""
        cold = [
            path
            for path in users
            if not self._imports.is_hot(path) and not path.endswith("__init__.py")
        ]
        if any("." not in text or text[0] == "." for path in cold for text in users[path]):
            return True
        # Who imports the module need not use this function of it.
        last = target[1].rpartition(".")[2]
        return bool(cold) and bool(self._speakers(cold, [last])[last])

    def _users_of(self, target: Name) -> dict[str, set[str]] | None:
        """The files that call a function, with how each spells it; None if they are too many.

        A method is looked for in its own file and where its class is known.
        """
        path, name = target
        owner, _, method = name.rpartition(".")
        users = self._imports.importers((path, owner or name))
        if users is None:
            return None
        if not owner:
            return {**users, path: {name, *users.get(path, ())}}
        speaking = self._speakers({path, *users}, [method])[method]
        self._users[target] = set(speaking)
        return {file: {f".{method}"} for file in speaking}

    def _confirm(self) -> bool:
        """Look for methods in all other files, where it matters; True if that changes something."""
        left = {
            target: target[1].rpartition(".")[2]
            for target in self._users
            if not self._callers[target].open and self._callers[target].calls
        }
        waiting = set(left)
        for path in sorted(self._imports.files):
            if not waiting:
                break
            spoken = self._speakers([path], {left[target] for target in waiting})
            found = {t for t in waiting if spoken[left[t]] and path not in self._users[t]}
            for target in found:
                self._callers[target].open = True
            waiting -= found
        return bool(left)

    def _unguarded(self, target: Name) -> set[Name]:
        """The functions in which a call stands without a guard; none if it stands in a module."""
        owners: set[Name] = set()
        for path, call in self._callers[target].calls:
            if call.known or self._backends(path):
                continue
            if not call.owner:
                return set()
            owners.add((path, call.owner))
        return owners - {target}

    def _settle(self) -> None:
        """From the calls that stand where something is known, outwards until nothing is added."""
        grown = True
        while grown:
            grown = False
            for target, callers in self._callers.items():
                if callers.open or not self._has_callers(callers):
                    continue
                every = [
                    frozenset(call.known) | self._backends(path) | self.guarded((path, call.owner))
                    for path, call in callers.calls
                    if (path, call.owner) != target
                ]
                known = frozenset.intersection(*every) if every else frozenset()
                if known != self.guarded(target):
                    self._known[target] = known
                    grown = True
