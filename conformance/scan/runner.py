"""Scans many files: asks the cache, has the rest looked at, and joins them to a project."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from conformance.scan.answering.cache import Cache
from conformance.scan.answering.versions import fitting
from conformance.scan.config import Config
from conformance.scan.findings import Finding, Severity
from conformance.scan.joining.project import Looked, Project, Question
from conformance.scan.judging.documents import OTHER_HOOKS, is_readable
from conformance.scan.judging.summary import EMPTY, Report
from conformance.scan.knowing.foreign import Foreign
from conformance.scan.knowing.paths import declared_by
from conformance.scan.knowing.reach import in_extension, in_kernel_package, is_own_package
from conformance.scan.looks import (
    first_look,
    first_looks,
    second_look,
    shared,
    third_look,
    without_collecting,
)
from conformance.scan.reading.discover import Target, discover
from conformance.scan.reading.kinds import is_other
from conformance.scan.reading.source import read_bytes, unsaved


@dataclass
class Outcome:
    """Everything found, sorted, and how many files were looked at and came from the cache.

    ``below`` is what was found of less than the wanted severity, ``passed`` the files that were
    passed over because what they are read with is not installed.
    """

    findings: list[Finding] = field(default_factory=list)
    below: list[Finding] = field(default_factory=list)
    files: int = 0
    cached: int = 0
    passed: list[Target] = field(default_factory=list)
    #: Files of the rest of the project that had to be read for what they say of these.
    read: int = 0
    #: What the files were told of each other, by path, where that was asked for.
    told: dict[str, Foreign] = field(default_factory=dict)

    def severity(self, finding: Finding) -> Severity:
        """How grave a finding is that was made by looking at its file alone."""
        return self._severities.get(_identity(finding), finding.severity)

    @cached_property
    def _severities(self) -> dict[tuple[str, ...], Severity]:
        held: dict[tuple[str, ...], Severity] = {}
        for finding in (*self.findings, *self.below):
            key = _identity(finding)
            held[key] = max(finding.severity, held.get(key, finding.severity))
        return held

    def take(self, found: list[Finding], target: Target, config: Config) -> None:
        """Add what was found in a file, as far as the settings let it through."""
        for finding in (fitting(f, config.torch) for f in _kept(found, target, config)):
            shown = finding.severity >= config.severity
            (self.findings if shown else self.below).append(finding)


def scan(targets: list[Target], config: Config, *, telling: bool = False) -> Outcome:
    """Scan files; what the settings leave out is left out, everything else is in the outcome.

    Files that others of the project can change are judged with the whole of it, whatever part
    of it is asked for. With ``telling`` the outcome holds what they were told of each other.
    """
    targets, passed = _readable(targets, config)
    outcome = Outcome(files=len(targets), passed=passed)
    run = _Run(config)
    run.first(targets)
    outcome.cached = run.cached
    with without_collecting():
        settled = run.settle(targets, anew=telling)
    outcome.told = run.told
    outcome.read = run.read
    for target in targets:
        findings = settled.get(target.path) or run.files[target.path].findings
        if target.path in settled:
            findings = [finding.at(target.shown) for finding in settled[target.path]]
        outcome.take(findings, target, config)
    run.save()
    outcome.findings.sort(key=lambda finding: finding.sort_key)
    return outcome


def _readable(targets: list[Target], config: Config) -> tuple[list[Target], list[Target]]:
    """Files that are read, and those that are not for want of what they are read with.

    Files that are not Python are neither where no rule that runs looks at them.
    """
    wanted = any(OTHER_HOOKS & rule.hooks.keys() for rule in config.rules())
    if wanted and is_readable():
        return targets, []
    others = [target for target in targets if is_other(target.logical)]
    left = set(others)
    return [target for target in targets if target not in left], others if wanted else []


class _Run:
    """One run over a project: what each file gave, alone and then with all the others."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.cache: Cache | None = None
        if config.cache:
            self.cache = Cache(Path(config.root, config.cache_dir), config.rules())
        self.files: dict[str, Looked] = {}
        self.keys: dict[str, str] = {}
        self.targets: dict[str, Target] = {}
        self.cached = self.read = 0
        self.told: dict[str, Foreign] = {}
        self._looks: dict[str, Report | None] = {}
        self._lacking: set[str] = set()  # their findings are known, but not their summaries

    def first(self, targets: list[Target]) -> int:
        """Look at files one by one, as far as the cache does not know them; returns how many."""
        missing: list[Target] = []
        for target in targets:
            key = self._key(target)
            self.targets[target.path] = target
            found = self.cache.get(key, target.shown) if self.cache is not None and key else None
            if found is None:
                missing.append(target)
            else:
                self.cached += 1
                self.files[target.path] = Looked(found, EMPTY)
                self._lacking.add(target.path)
        self._study(missing)
        return len(missing)

    def _study(self, targets: list[Target]) -> None:
        for target, looked in zip(targets, first_looks(targets, self.config), strict=True):
            self.files[target.path] = looked
            self._lacking.discard(target.path)
            key = self.keys[target.path]
            if self.cache is not None and key:
                self.cache.put(key, looked.findings)
                self.cache.put_summary(key, looked.summary)

    def _key(self, target: Target) -> str:
        path = target.path
        if path not in self.keys:
            self.keys[path] = ""
            if self.cache is not None:
                with contextlib.suppress(OSError):
                    self.keys[path] = self.cache.key_of(path, _declared(target.logical))
        return self.keys[path]

    def settle(self, targets: list[Target], *, anew: bool = False) -> dict[str, list[Finding]]:
        """Findings of the targets that the project as a whole changes, by path."""
        paths = [target.path for target in targets]
        cache = self.cache
        key = self._identity(paths) if cache is not None else ""
        if cache is not None:
            held = cache.settled(key)
            if held is not None and not anew:
                return held
        self._complete(paths)
        if not any(self.files[path].asks for path in paths):
            settled: dict[str, list[Finding]] = {}
        else:
            known = set(self.files)
            self.read = self.first([t for t in self._rest(targets) if t.path not in known])
            self._complete(self.files)
            project = self._project()
            settled = project.settle(paths)
            self.told = project.told
        if cache is not None and len(self.files) == len(paths):
            cache.put_settled(key, settled)
        return settled

    def _identity(self, paths: list[str]) -> str:
        """What a whole run depends on."""
        digest = hashlib.blake2b(digest_size=16)
        for path in paths:
            digest.update(f"{path}\0{self.keys[path]}\n".encode("utf-8", "surrogatepass"))
        return "project:" + digest.hexdigest()

    def _complete(self, paths: Iterable[str]) -> None:
        """Have a summary of each of these files."""
        missing: list[Target] = []
        for path in paths:
            if path in self._lacking and self.cache is not None:
                summary = self.cache.summary(self.keys[path])
                if summary is None:
                    missing.append(self.targets[path])
                else:
                    self.files[path] = Looked(self.files[path].findings, summary)
                    self._lacking.discard(path)
        self._study(missing)

    def _rest(self, targets: list[Target]) -> list[Target]:
        """The other Python files of the project, where there is one that holds all the targets."""
        root = str(self.config.root)
        marked = any(Path(root, name).exists() for name in ("pyproject.toml", ".git"))
        if not marked or not all(t.path.startswith(root + os.sep) for t in targets):
            return []
        return [t for t in discover([root], self.config) if not is_other(t.logical)]

    def _project(self) -> Project:
        files = {path: self.files[path] for path in sorted(self.files)}
        logical = {path: target.logical for path, target in self.targets.items()}
        return Project(files, logical, self._look, self._again, _bytes_of)

    def _look(self, questions: Sequence[Question]) -> list[Report]:
        """Answers to questions about files, from the cache as far as it knows them."""
        keys = [self._question(question) for question in questions]
        held = [self._looks.get(key) for key in keys]
        if self.cache is not None:
            held = [
                report or self.cache.report(key) for report, key in zip(held, keys, strict=True)
            ]
        missing = [index for index, report in enumerate(held) if report is None]
        work = [(self.targets[questions[i][0]], *questions[i][1:]) for i in missing]
        for index, report in zip(missing, shared(self.config, second_look, work), strict=True):
            held[index] = report
            if self.cache is not None and self.keys[questions[index][0]]:
                self.cache.put_report(keys[index], report)
        self._looks.update(zip(keys, held, strict=True))
        return [report or Report() for report in held]

    def _question(self, question: Question) -> str:
        path, names, own, foreign = question
        asked = f"{sorted(names)}{sorted(own)}{foreign.key}"
        digest = hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=12)
        return f"{self.keys[path] or path}?{digest.hexdigest()}"

    def _again(self, told: Sequence[tuple[str, Foreign]]) -> list[Looked]:
        """Files judged anew, given what others say about them."""
        result: list[Looked | None] = []
        for path, foreign in told:
            key, held = f"{self.keys[path]}+{foreign.key}", None
            if self.cache is not None and self.keys[path]:
                found = self.cache.get(key, self.targets[path].shown)
                summary = self.cache.summary(key)
                if found is not None and summary is not None:
                    held = Looked(found, summary)
            result.append(held)
        missing = [index for index, held in enumerate(result) if held is None]
        codes = tuple(rule.code for rule in self.config.rules())
        work = [(self.targets[told[i][0]], codes, told[i][1]) for i in missing]
        for index, looked in zip(missing, shared(self.config, third_look, work), strict=True):
            path, foreign = told[index]
            result[index] = looked = looked or self.files[path]
            if self.cache is not None and self.keys[path]:
                key = f"{self.keys[path]}+{foreign.key}"
                self.cache.put(key, looked.findings)
                self.cache.put_summary(key, looked.summary)
        return [held for held in result if held is not None]

    def save(self) -> None:
        """Keep what was learnt."""
        if self.cache is not None:
            self.cache.save()


def _identity(finding: Finding) -> tuple[str, ...]:
    """What stays of a finding while the lines around it are mended."""
    return finding.path, finding.code, finding.scope, finding.text


def _bytes_of(path: str) -> bytes:
    try:
        return read_bytes(path)
    except OSError:
        return b""  # gone since the first look


def _declared(path: str) -> str:
    """What a path adds to a file's content: how it is read, and what it says of itself."""
    if is_other(path):
        return path
    if path.endswith("setup.py"):
        return f"{declared_by(path)}{path if is_readable() else ''}"
    return declared_by(path) + (".ipynb" if path.endswith(".ipynb") else "")


def _kept(findings: list[Finding], target: Target, config: Config) -> list[Finding]:
    loud = any(f.severity > Severity.NOTE for f in findings)
    if loud and (in_kernel_package(target.path) or in_extension(target.path, str(config.root))):
        # Not in the analysis: what is kept in the cache must not depend on other files.
        findings = [replace(f, severity=Severity.NOTE) for f in findings]
    return [
        finding
        for finding in findings
        if config.keeps(target.logical, finding.code)
        and not (finding.code == "DEV113" and is_own_package(str(config.root), finding.text))
    ]


def scan_text(data: bytes, name: str, config: Config) -> Outcome:
    """Scan bytes that came by another way (standard input) as a file called ``name``: where there
    is one, as what will be in it, with the rest of its project."""
    targets = discover([name], config) if Path(name).is_file() else []
    if targets:
        with unsaved(targets[0].path, data):
            return scan(targets, replace(config, jobs=1))
    target = Target(name, name, name)
    if is_other(name) and not is_readable():
        return Outcome(passed=[target])
    outcome = Outcome(files=1)
    outcome.take(first_look(target, config.rules(), data).findings, target, config)
    return outcome
