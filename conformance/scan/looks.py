"""The looks at files that a run takes, here or shared out among processes."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from conformance.scan.config import Config
from conformance.scan.joining.project import Looked
from conformance.scan.judging.analysis import failure, study
from conformance.scan.judging.looking import look
from conformance.scan.judging.rule import Rule
from conformance.scan.judging.rules import BY_CODE
from conformance.scan.judging.summary import EMPTY, Report
from conformance.scan.knowing.foreign import ALONE, Foreign
from conformance.scan.reading.discover import Target
from conformance.scan.reading.source import read_bytes

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

#: Fewer bytes than this are scanned sooner than a second process is started.
_WORTH_A_PROCESS = 3_000_000
_CHUNK = 48
#: Fewer second looks than this are taken sooner than a second process is started.
_WORTH_SHARING = 24
T = TypeVar("T")
U = TypeVar("U")


def first_look(target: Target, rules: Iterable[Rule], data: bytes | None = None) -> Looked:
    """What a file says by itself; ``data`` are its bytes where they came by another way."""
    try:
        content = read_bytes(target.path) if data is None else data
    except OSError as error:
        reason = error.strerror or "not a regular file"
        return Looked([failure(target.shown, 1, f"could not be read: {reason}")], EMPTY)
    found, summary = study(target.logical, content, rules)
    return Looked([finding.at(target.shown) for finding in found], summary)


def _scan_chunk(targets: list[Target], codes: tuple[str, ...]) -> list[Looked]:
    """Work of one process."""
    rules = [BY_CODE[code] for code in codes]
    with without_collecting():
        return [first_look(target, rules) for target in targets]


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """What a file leaves behind holds no cycles, so none are looked for: neither among the many
    summaries, nor in the processes that are started meanwhile."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def first_looks(targets: list[Target], config: Config) -> list[Looked]:
    """What many files say, each by itself, in their order."""
    rules = config.rules()
    jobs = config.jobs or os.cpu_count() or 1
    jobs = min(jobs, (len(targets) + _CHUNK - 1) // _CHUNK)
    if jobs > 1 and not _worth_it(targets):
        jobs = 1
    if jobs <= 1:
        return _scan_chunk(targets, tuple(rule.code for rule in rules))
    codes = tuple(rule.code for rule in rules)
    chunks = [targets[start :: _stride(targets)] for start in range(_stride(targets))]
    with _pool(jobs) as pool:
        results = list(pool.map(_scan_chunk, chunks, [codes] * len(chunks)))
    merged: dict[str, Looked] = {}
    for chunk, result in zip(chunks, results, strict=True):
        merged.update(zip((target.path for target in chunk), result, strict=True))
    return [merged[target.path] for target in targets]


def _pool(jobs: int) -> ProcessPoolExecutor:
    """Processes to share work out among."""
    # Imported here: a run on few files starts sooner without them.
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Forking is the quicker start, and safe here: the scanner runs no threads. Inside a process
    # that has loaded much else (a test run, a notebook) a fresh interpreter is safer.
    method = "fork" if sys.platform == "linux" and "torch" not in sys.modules else "spawn"
    return ProcessPoolExecutor(jobs, mp_context=get_context(method))


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


def second_look(asked: tuple[Target, frozenset[str], frozenset[str], Foreign]) -> Report:
    """What a file does with some names; nothing where it is gone since the first look."""
    target, names, own, foreign = asked
    try:
        data = read_bytes(target.path)
    except OSError:
        return Report()  # gone since the first look
    return look(target.logical, data, names, own, _spoken_of(target, data, foreign))


def _spoken_of(target: Target, data: bytes, foreign: Foreign) -> Foreign:
    """What is told of names that a file uses; a notebook's code stands in other words in it."""
    return foreign if target.logical.endswith(".ipynb") else foreign.spoken_of(data)


def third_look(told: tuple[Target, tuple[str, ...], Foreign]) -> Looked | None:
    """A file judged anew, given what others say of it; None where nothing is told that it speaks
    of, or it is gone since the first look."""
    target, codes, foreign = told
    try:
        data = read_bytes(target.path)
    except OSError:
        return None
    foreign = _spoken_of(target, data, foreign)
    if foreign == ALONE:
        return None
    findings, summary = study(target.logical, data, [BY_CODE[code] for code in codes], foreign)
    return Looked([finding.at(target.shown) for finding in findings], summary)


def shared(config: Config, function: Callable[[T], U], work: list[T]) -> list[U]:
    """Work done here, or by several processes if there is enough of it."""
    jobs = config.jobs or os.cpu_count() or 1
    if jobs <= 1 or len(work) < _WORTH_SHARING:
        return [function(item) for item in work]
    with _pool(jobs) as pool:
        return list(pool.map(function, work, chunksize=4))
