"""One pass over a project: what its files know of each other, and what that makes of findings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from conformance.scan.findings import Finding, Severity
from conformance.scan.joining.calls import Calls
from conformance.scan.joining.imports import Imports, Name
from conformance.scan.joining.lacking import Lacking
from conformance.scan.joining.modules import stem
from conformance.scan.joining.trials import trial_of
from conformance.scan.joining.written import is_from_host, saved_in
from conformance.scan.judging.summary import Report, Summary
from conformance.scan.knowing.foreign import ALONE, Foreign
from conformance.scan.knowing.paths import is_test
from conformance.scan.knowing.reach import is_private
from conformance.scan.knowing.vocabulary import ACCELERATORS
from conformance.scan.reading.imports import Import
from conformance.scan.reading.prefilter import mentions

#: What is asked of a file: its path, names that it speaks of, functions of its own, and what is
#: known of the names that it imports.
Question = tuple[str, frozenset[str], frozenset[str], Foreign]
#: Answers to many questions, in their order.
Look = Callable[[Sequence[Question]], Sequence[Report]]
#: Files' findings and summaries, given what others say about them.
Again = Callable[[Sequence[tuple[str, Foreign]]], Sequence["Looked"]]
#: The bytes of a file, none if it is gone.
Read = Callable[[str], bytes]
#: A device is followed through so many calls, each in the function that the one before calls.
_HANDED = 3
_STORED = re.compile(r"(\w+)[ \t]*=[^=]")
#: A chain of imports longer than this is not followed.
_FAR = 100


@dataclass(frozen=True, slots=True)
class Looked:
    """What the first look at a file gave."""

    findings: list[Finding]
    summary: Summary

    @property
    def asks(self) -> bool:
        """Whether other files can change what is said of this one."""
        summary = self.summary
        return bool(self.findings or summary.passed or summary.unplaced or summary.fields)


class Project:
    """The files of a project, asked for what each of them does to the others."""

    def __init__(
        self,
        files: Mapping[str, Looked],
        logical: Mapping[str, str],
        look: Look,
        again: Again,
        read: Read,
    ) -> None:
        self._files = files
        self._logical = logical
        self._look = look
        self._again = again
        self._read = read
        self._places: dict[str, str] | None = None
        self._saved = saved_in(
            file.summary for path, file in files.items() if not is_test(logical[path])
        )
        self._handing: dict[Name, list[tuple[str, str, str]]] = {}
        self._forwards: dict[tuple[Name, str], list[tuple[Name, str]]] = {}
        self._imports = Imports({path: file.summary for path, file in files.items()})
        self._lacking = Lacking(self._imports, read, logical, self._is_test)
        #: What the settled files were told of the others.
        self.told: dict[str, Foreign] = {}
        self._values: dict[str, Foreign] = {}
        self._given: dict[Name, list[tuple[str, str]]] = {}
        self._backends: dict[str, frozenset[str]] = {}
        self._trials: dict[str, range] = {}

    def settle(self, wanted: Iterable[str]) -> dict[str, list[Finding]]:
        """The findings of those of the wanted files that the others change."""
        subjects = [path for path in sorted(wanted) if self._files[path].asks]
        held = {path: self._files[path] for path in subjects}
        self._define(subjects)
        changed = {path: self._foreign(path) for path in subjects}
        changed = {path: foreign for path, foreign in changed.items() if foreign != ALONE}
        self.told = changed
        held.update(zip(changed, self._again(list(changed.items())), strict=True))
        calls = Calls(self._imports, self._reports, self.backends, self._is_test, self._speakers)
        defaults = {
            (path, default[2]) for path, file in held.items() for default in file.summary.defaults
        }
        calls.follow(self._owners(held), defaults)
        settled: dict[str, list[Finding]] = {}
        for path, file in held.items():
            findings = [self._milder(path, file.summary, f, calls) for f in file.findings]
            if findings != self._files[path].findings:
                settled[path] = findings
        return settled

    def _is_test(self, path: str) -> bool:
        return is_test(self._logical[path])

    def _report(self, path: str, names: Iterable[str]) -> Report:
        return self._look([(path, frozenset(names), frozenset(), self.values(path))])[0]

    def _reports(self, asked: Mapping[str, Iterable[str]]) -> Sequence[Report]:
        none: frozenset[str] = frozenset()
        return self._look(
            [(path, frozenset(names), none, self.values(path)) for path, names in asked.items()]
        )

    # What is known of a file before it is judged

    def _foreign(self, path: str) -> Foreign:
        file = self._files[path]
        loud = any(f.severity > Severity.NOTE for f in file.findings)
        return replace(
            self.values(path) if loud else ALONE,
            backends=tuple(sorted(self.backends(path))) if loud else (),
            parameters=tuple(self._parameters(path, file.summary)),
            placed=tuple(self._placed(path, file.summary)),
            fields=tuple(self._fields(file.summary)),
            reached=tuple(self._reached(path, file.findings)),
        )

    def values(self, path: str) -> Foreign:
        """What the names stand for that a file imports from the project."""
        if path not in self._values:
            found = dict(self._valued(path))
            self._values[path] = Foreign(
                values=tuple(sorted(found.items())),
                refusing=tuple(sorted(self._refusing(path))),
                extensions=self._extensions(path),
            )
        return self._values[path]

    def _extensions(self, path: str) -> tuple[str, ...]:
        """What a file imports that cannot be imported without CUDA, as it spells it."""
        lacking = self._lacking
        return tuple(sorted({*lacking.extensions.get(path, ()), *lacking.behind(path)}))

    def _valued(self, path: str) -> Iterator[tuple[str, str]]:
        imports = self._imports
        for item in imports.stars(path):
            module = imports.modules.find(item.module, path)
            if module is not None and module != path:
                for name, text in self._files[module].summary.offers.items():
                    if not name.startswith("_"):
                        yield name, text
        for local, item in imports.of(path).items():
            source = imports.source(item, path)
            if source is None or source[0] == path:
                continue
            offers = self._files[source[0]].summary.offers
            if source[1] in offers:
                yield local, offers[source[1]]
            elif not source[1]:
                for name, text in offers.items():
                    yield f"{local}.{name}", text

    def _refusing(self, path: str) -> Iterator[str]:
        """Imported functions that do not come back without CUDA, as the file spells them."""
        for local, item in self._imports.of(path).items():
            source = self._imports.source(item, path)
            if source is None or source[0] == path:
                continue
            names = self._files[source[0]].summary.refusing
            if source[1] in names:
                yield local
            elif not source[1]:
                yield from (f"{local}.{name}" for name in names)

    def _parameters(
        self, path: str, summary: Summary
    ) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
        """What the functions do with a device that the file gives them."""
        for text in dict.fromkeys(text for text, _ in summary.passed):
            target = self._definition(path, text)
            given = self._given.get(target, []) if target is not None else []
            placed = tuple(_by_place(given))
            if placed:
                yield text, placed

    def _define(self, subjects: Iterable[str]) -> None:
        """Look up what the functions do that are given a device, each file once a round: what
        one hands on to another is looked up in the next."""
        wanted: dict[Name, set[str]] = {}
        for path in subjects:
            for text, which in self._files[path].summary.passed:
                target = self._definition(path, text)
                if target is not None:
                    wanted.setdefault(target, set()).add(which)
        for _ in range(_HANDED):
            wanted = self._define_some(wanted)
            if not wanted:
                break
        for _ in range(_HANDED):
            for (target, parameter), onward in self._forwards.items():
                self._follow(target, parameter, onward)

    def _define_some(self, wanted: Mapping[Name, set[str]]) -> dict[Name, set[str]]:
        """Look up functions; returns those that they hand one of the wanted parameters to."""
        names: dict[str, set[str]] = {}
        for path, name in wanted.keys() - self._given.keys():
            names.setdefault(path, set()).add(name)
        none: frozenset[str] = frozenset()
        asked = [(path, none, frozenset(names[path]), self.values(path)) for path in sorted(names)]
        for (path, *_), report in zip(asked, self._look(asked), strict=True):
            for name, given in report.parameters.items():
                self._given[path, name] = list(given)  # the report stays as it is
                self._handing[path, name] = report.forwards.get(name, [])
        onward: dict[Name, set[str]] = {}
        for giver, places in wanted.items():
            for target, which in self._handed_on(giver, places):
                onward.setdefault(target, set()).add(which)
        return onward

    def _handed_on(self, name: Name, places: set[str]) -> Iterator[tuple[Name, str]]:
        """The functions that a function hands some of its parameters to, and as which."""
        given = self._given.get(name, [])
        meant = {
            parameter.lstrip("*")
            for place, (parameter, how) in enumerate(given)
            if not how and (str(place) in places or parameter.lstrip("*") in places)
        }
        for parameter, text, which in self._handing.get(name, []):
            target = self._definition(name[0], text) if parameter in meant else None
            if target is not None:
                held = self._forwards.setdefault((name, parameter), [])
                if (target, which) not in held:
                    held.append((target, which))
                yield target, which

    def _follow(self, target: Name, parameter: str, onward: list[tuple[Name, str]]) -> None:
        """A parameter is placed where the function that it is handed to places it."""
        given = self._given.get(target, [])
        for place, (name, how) in enumerate(given):
            if name.lstrip("*") != parameter or how:
                continue
            for taker, which in onward:
                inner = dict(_by_place(self._given.get(taker, []))).get(which)
                if inner:
                    last = target[1].rpartition(".")[2]
                    shown = f"`{parameter}` of {last}() (used in {taker[1].rpartition('.')[2]}())"
                    given[place] = (name, shown)
                    break

    def _definition(self, path: str, text: str) -> Name | None:
        """The module and name of a function as a file spells it."""
        if text.startswith("="):
            return path, text[1:]
        imports = self._imports
        base, _, last = text.rpartition(".")
        item = imports.of(path).get(text)
        if item is not None:
            source = imports.source(item, path)
        elif base in imports.of(path):
            module = imports.source(imports.of(path)[base], path)
            if module is not None and module[1]:
                return module[0], f"{module[1]}.{last}"  # a method of a class
            source = imports.defined(module[0], last) if module is not None else None
        else:
            return None
        return source if source is not None and source[1] else None

    def _placed(self, path: str, summary: Summary) -> Iterator[tuple[str, str]]:
        """The file's constants that other files place something with."""
        for name in summary.unplaced:
            users = self._imports.importers((path, name)) or {}
            for user in sorted(users):
                used = self._report(user, users[user]).used
                how = next((used[text] for text in sorted(users[user]) if text in used), None)
                if how is not None:
                    yield name, how if how[0] == "`" else f"{how} of {user.rpartition('/')[2]}"
                    break

    def _fields(self, summary: Summary) -> Iterator[tuple[str, str]]:
        """Fields that the file sets to a device, and that others place something with."""
        if self._places is None:
            self._places = {}
            for user in sorted(self._files):
                if not self._is_test(user):
                    for name, how in self._files[user].summary.placing.items():
                        shown = f"`{name}` (used in {how} of {user.rpartition('/')[2]})"
                        self._places.setdefault(name, shown)
        for name in summary.fields:
            if name in self._places:
                yield name, self._places[name]

    def _reached(self, path: str, findings: list[Finding]) -> Iterator[str]:
        """Private functions of the file that another calls where nothing is known."""
        names = {f.scope.partition(".")[0] for f in findings if f.severity == Severity.NOTE}
        for name in sorted(name for name in names if is_private(name)):
            users = self._imports.importers((path, name)) or {}
            for user in sorted(users):
                report = self._report(user, users[user])
                every = [call for text in users[user] for call in report.calls.get(text, ())]
                if report.otherwise or any("cuda" not in call.known for call in every):
                    yield name
                    break

    def backends(self, path: str) -> frozenset[str]:
        """Accelerators without which a file is not imported: all that import it have made sure."""
        return self._guarded(path, ())

    def _guarded(self, path: str, waiting: tuple[str, ...]) -> frozenset[str]:
        held = self._backends.get(path)
        if held is not None:
            return held
        result: frozenset[str] | None = None
        for inner in (False, True):  # what stands at the margin needs no look into the file
            if len(waiting) > _FAR or (result is not None and not result):
                break
            for user, item in self._imports.loaders(path):
                if item.inner is not inner or user in waiting:
                    continue
                if self._is_test(user) and not self._is_test(path):
                    continue
                known = self._under(user, item, (*waiting, path))
                if known is not None:
                    result = known if result is None else result & known
                    if not result:
                        break
        result = result or frozenset()
        if not waiting or (not result and len(waiting) <= _FAR):
            self._backends[path] = result
        return result

    def _under(self, user: str, item: Import, waiting: tuple[str, ...]) -> frozenset[str] | None:
        """What is known where a file imports another, None where it does so for types only."""
        known = self._guarded(user, waiting)
        if not item.inner:
            return known
        seen = self._report(user, ()).imports.get(f"{item.module}:{item.name}", [()])
        runs = [frozenset(backends) for backends in seen if backends is not None]
        return known | frozenset.intersection(*runs) if runs else None

    # What is made of a finding, once its callers are known

    def _owners(self, held: Mapping[str, Looked]) -> set[Name]:
        owners: set[Name] = set()
        for path, file in held.items():
            if self._is_test(path):
                continue
            for finding in file.findings:
                if finding.severity > Severity.NOTE:
                    owners.update((path, name) for name in _owners_of(finding, file.summary))
        return owners

    def _milder(self, path: str, summary: Summary, finding: Finding, calls: Calls) -> Finding:
        if finding.severity == Severity.NOTE:
            return finding
        cut_off = path in self._lacking.files and finding.code != "DEV113"
        if cut_off and (path in self._lacking.roots or self._is_test(path)):
            return replace(finding, severity=Severity.NOTE)  # the import is what fails
        if finding.code == "DEV114" and is_from_host(finding, self._saved):
            return replace(finding, severity=Severity.NOTE)
        if not finding.scope and (
            self._is_trial(path, finding.line) or self._is_unread(path, finding)
        ):
            return replace(finding, severity=Severity.NOTE)
        if any(
            backend == "cuda" or backend in finding.text.lower()
            for owner in _owners_of(finding, summary)
            for backend in calls.guarded((path, owner)) & ACCELERATORS
        ):
            return replace(finding, severity=Severity.NOTE)
        if finding.severity == Severity.ERROR and cut_off:
            # An import further down fails before this can.
            return replace(finding, severity=Severity.WARNING)
        if finding.code == "DEV103":
            return self._overridden(path, summary, finding, calls)
        return finding

    def _overridden(self, path: str, summary: Summary, finding: Finding, calls: Calls) -> Finding:
        """A default that no call in the project uses, or only where CUDA is known."""
        for line, column, function, name, place in summary.defaults:
            if (line, column) != (finding.line, finding.column):
                continue
            if "cuda" in calls.guarded((path, function)):
                return replace(finding, severity=Severity.NOTE)
            if calls.overridden((path, function), name, place):
                return replace(finding, severity=min(finding.severity, Severity.WARNING))
        return finding

    def _is_unread(self, path: str, finding: Finding) -> bool:
        """Whether a choice is given a name that nothing in the project reads."""
        stored = _STORED.match(finding.source[0]) if finding.source else None
        if finding.code != "DEV104" or stored is None:
            return False
        name = stored[1]
        read = rb"(?<![\w.])%b\b(?!\s*=(?!=))" % name.encode()
        if re.search(read, self._read(path)) is not None:
            return False
        users = self._imports.importers((path, name))
        if users is None or any(mentions(self._read(u), names) for u, names in users.items()):
            return False
        # By whatever other way: a package, `getattr`, a text that is run, a notebook.
        module = stem(path).encode()
        chain = re.compile(rb"\b%b\.%b\b" % (module, name.encode()))
        by_text = re.compile(rb"[\"']%b[\"']|\bexec\(" % name.encode())
        return not any(
            chain.search(data) or (module in data and by_text.search(data))
            for data in (self._read(user) for user in self._imports.files if user != path)
        )

    def _is_trial(self, path: str, line: int) -> bool:
        """Whether a line is in what a module that others import tries out by itself."""
        if path not in self._trials:
            used = any(not self._is_test(user) for user, _ in self._imports.loaders(path))
            self._trials[path] = trial_of(self._read(path)) if used else range(0)
        return line in self._trials[path]

    def _speakers(self, paths: Iterable[str], methods: Iterable[str]) -> dict[str, list[str]]:
        """By method, those of some files in which it is spoken of."""
        words = [(method, f".{method}".encode()) for method in sorted(set(methods))]
        found: dict[str, list[str]] = {method: [] for method, _ in words}
        for path in sorted(paths) if words else ():
            data = self._read(path)
            for method, word in words:
                if word in data:
                    found[method].append(path)
        return found


def _by_place(given: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Where parameters end up, by their places and by their names."""
    for place, (name, how) in enumerate(given):
        if how and not name.startswith("*"):
            yield str(place), how
        if how:
            yield name.lstrip("*"), how


def _owners_of(finding: Finding, summary: Summary) -> list[str]:
    """The function or class of a module that a finding lies in, and its method."""
    parts = finding.scope.split(".")
    method = ".".join(parts[:2])
    return [*parts[:1], *([method] if method in summary.methods else [])] if parts[0] else []
