"""Scans many files: reads, asks the cache, shares the rest out among processes."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from conformance.scan.answering.cache import Cache, content_key
from conformance.scan.answering.versions import fitting
from conformance.scan.config import Config
from conformance.scan.findings import Finding, Severity
from conformance.scan.judging.analysis import analyse, failure
from conformance.scan.judging.documents import OTHER_HOOKS, is_readable
from conformance.scan.judging.rule import Rule
from conformance.scan.judging.rules import BY_CODE
from conformance.scan.knowing.paths import declared_by
from conformance.scan.knowing.reach import in_kernel_package
from conformance.scan.reading.discover import Target
from conformance.scan.reading.kinds import is_other
from conformance.scan.reading.source import read_bytes

#: Fewer bytes than this are scanned sooner than a second process is started.
_WORTH_A_PROCESS = 3_000_000
_CHUNK = 48


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

    def take(self, found: list[Finding], target: Target, config: Config) -> None:
        """Add what was found in a file, as far as the settings let it through."""
        for finding in (fitting(f, config.torch) for f in _kept(found, target, config)):
            shown = finding.severity >= config.severity
            (self.findings if shown else self.below).append(finding)


def _scan_one(target: Target, rules: Iterable[Rule], data: bytes | None = None) -> list[Finding]:
    try:
        content = read_bytes(target.path) if data is None else data
    except OSError as error:
        reason = error.strerror or "not a regular file"
        return [failure(target.shown, 1, f"could not be read: {reason}")]
    found = analyse(target.logical, content, rules)
    return [finding.at(target.shown) for finding in found]


def _scan_chunk(targets: list[Target], codes: tuple[str, ...]) -> list[list[Finding]]:
    """Work of one process; what a file leaves behind holds no cycles, so none are looked for."""
    rules = [BY_CODE[code] for code in codes]
    collecting = gc.isenabled()
    gc.disable()
    try:
        return [_scan_one(target, rules) for target in targets]
    finally:
        if collecting:
            gc.enable()


def _scan_many(targets: list[Target], config: Config) -> list[list[Finding]]:
    rules = config.rules()
    jobs = config.jobs or os.cpu_count() or 1
    jobs = min(jobs, (len(targets) + _CHUNK - 1) // _CHUNK)
    if jobs > 1 and not _worth_it(targets):
        jobs = 1
    if jobs <= 1:
        return _scan_chunk(targets, tuple(rule.code for rule in rules))
    # Imported here: a run on few files starts sooner without them.
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    codes = tuple(rule.code for rule in rules)
    chunks = [targets[start :: _stride(targets)] for start in range(_stride(targets))]
    # Forking is the quicker start, and safe here: the scanner runs no threads. Inside a process
    # that has loaded much else (a test run, a notebook) a fresh interpreter is safer.
    method = "fork" if sys.platform == "linux" and "torch" not in sys.modules else "spawn"
    with ProcessPoolExecutor(jobs, mp_context=get_context(method)) as pool:
        results = list(pool.map(_scan_chunk, chunks, [codes] * len(chunks)))
    merged: dict[str, list[Finding]] = {}
    for chunk, result in zip(chunks, results, strict=True):
        merged.update(zip((target.path for target in chunk), result, strict=True))
    return [merged[target.path] for target in targets]


def _stride(targets: list[Target]) -> int:
    return (len(targets) + _CHUNK - 1) // _CHUNK


def _worth_it(targets: list[Target]) -> bool:
    total = 0
    for target in targets:
        try:
            total += os.stat(target.path).st_size
        except OSError:
            continue
        if total > _WORTH_A_PROCESS:
            return True
    return False


def scan(targets: list[Target], config: Config) -> Outcome:
    """Scan files; what the settings leave out is left out, everything else is in the outcome."""
    cache = None
    if config.cache:
        cache = Cache(Path(config.root, config.cache_dir), config.rules())
    targets, passed = _readable(targets, config)
    outcome = Outcome(files=len(targets), passed=passed)
    missing: list[Target] = []
    keys: list[str] = []
    for target in targets:
        found: list[Finding] | None = None
        if cache is not None:
            key = _key(target)
            found = cache.get(key, target.shown) if key else None
            if found is not None:
                outcome.cached += 1
        if found is None:
            missing.append(target)
            keys.append(key if cache is not None else "")
        else:
            outcome.take(found, target, config)
    results = _scan_many(missing, config)
    for target, key, found in zip(missing, keys, results, strict=True):
        if cache is not None and key:
            cache.put(key, found)
        outcome.take(found, target, config)
    if cache is not None:
        cache.save()
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


def _key(target: Target) -> str:
    try:
        return content_key(read_bytes(target.path), _declared(target.logical))
    except OSError:
        return ""


def _declared(path: str) -> str:
    """What a path adds to a file's content: how it is read, and what it says of itself."""
    if is_other(path):
        return path
    if path.endswith("setup.py"):
        return f"{declared_by(path)}{path if is_readable() else ''}"
    return declared_by(path) + (".ipynb" if path.endswith(".ipynb") else "")


def _kept(findings: list[Finding], target: Target, config: Config) -> list[Finding]:
    if any(f.severity > Severity.NOTE for f in findings) and in_kernel_package(target.path):
        # Not in the analysis: what is kept in the cache must not depend on other files.
        findings = [replace(f, severity=Severity.NOTE) for f in findings]
    return [finding for finding in findings if config.keeps(target.logical, finding.code)]


def scan_text(data: bytes, name: str, config: Config) -> Outcome:
    """Scan bytes that came by another way (standard input) as a file called ``name``."""
    target = Target(name, name, name)
    if is_other(name) and not is_readable():
        return Outcome(passed=[target])
    found = _scan_one(target, config.rules(), data)
    outcome = Outcome(files=1)
    outcome.take(found, target, config)
    return outcome
