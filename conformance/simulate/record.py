"""Keeps what a run did on the simulated device: operators, fallbacks, transfers."""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from conformance.simulate.operators import Operator

_INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


_MOST_MET = 10_000


class SimulationWarning(UserWarning):
    """Something works here that a Mac would do otherwise."""


class _Files(dict[str, bool]):
    """Files by name: whether they are torch's or this package's."""

    def __missing__(self, file: str) -> bool:
        self[file] = inside = file.startswith((*_INSIDE, "<"))
        return inside


_FILES = _Files()


def place() -> str:
    """`file:line` of the innermost frame outside torch and this package."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not _FILES[name]:
            return f"{name}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "unknown"


class Recorder:
    """Counts, by operator name and by place in the source."""

    def __init__(self) -> None:
        self.operators: Counter[str] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        self.transfers: Counter[tuple[str, str, str, str]] = Counter()
        self.transferred: Counter[str] = Counter()
        self.refusals: Counter[tuple[str, str, str]] = Counter()
        self.met: list[tuple[str, str, str]] = []
        """Limit, operator and place of each refusal, in the order they were met."""
        self.asked = 0
        """How often the program named the device."""
        self.notes: set[str] = set()
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def clear(self) -> None:
        """Forgets all counts, as a forked process must."""
        counters: tuple[Counter[Any], ...] = (
            self.operators,
            self.fallbacks,
            self.refusals,
            self.transfers,
            self.transferred,
        )
        for counts in counters:
            counts.clear()
        self.met.clear()
        self.notes.clear()

    def fallback(self, operator: Operator) -> None:
        """An operator ran on the host for want of a kernel; warns once, in MPS's words."""
        with self._lock:
            self.fallbacks[operator.name, place()] += 1
            first = operator.name not in self._warned
            self._warned.add(operator.name)
        if first:
            _warn(
                f"The operator '{operator.name}' is not currently supported on the MPS backend "
                "and will fall back to run on the CPU. This may have performance implications.",
                UserWarning,
            )

    def refusal(self, code: str, operator: str) -> None:
        """The program met a limit, whether or not it lives with that."""
        row = code, operator, place()
        with self._lock:
            self.refusals[row] += 1
            if len(self.met) < _MOST_MET:
                self.met.append(row)

    def transfer(self, direction: str, operator: str, nbytes: int, why: str = "copy") -> None:
        """Data went between host and device, or the host waited for the device."""
        with self._lock:
            self.transfers[direction, operator, why, place()] += 1
            self.transferred[direction] += nbytes

    def note(self, text: str) -> None:
        """Something the reader of the report should know; said once."""
        if text not in self.notes:
            self.notes.add(text)
            _warn(text, SimulationWarning)


def _warn(text: str, category: type[Warning]) -> None:
    """Warns of the line that `place` finds, however deep torch and this package are."""
    file, _, line = place().rpartition(":")
    warnings.warn_explicit(text, category, file or "unknown", int(line) if line.isdigit() else 1)
