"""Keeps what a run did on the simulated device: operators, fallbacks, transfers."""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter
from pathlib import Path

import torch

from conformance.simulate.operators import Operator

_INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class SimulationWarning(UserWarning):
    """Something works here that a Mac would do otherwise."""


def place() -> str:
    """`file:line` of the innermost frame outside torch and this package."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((*_INSIDE, "<")):
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
        self.notes: set[str] = set()
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def clear(self) -> None:
        """Forgets all counts, as a forked process must."""
        for counts in (self.operators, self.fallbacks, self.transfers, self.transferred):
            counts.clear()
        self.notes.clear()

    def fallback(self, operator: Operator) -> None:
        """An operator ran on the host for want of a kernel; warns once, in MPS's words."""
        with self._lock:
            self.fallbacks[operator.name, place()] += 1
            first = operator.name not in self._warned
            self._warned.add(operator.name)
        if first:
            warnings.warn(
                f"The operator '{operator.name}' is not currently supported on the MPS backend "
                "and will fall back to run on the CPU. This may have performance implications.",
                UserWarning,
                stacklevel=4,
            )

    def transfer(self, direction: str, operator: str, nbytes: int, why: str = "copy") -> None:
        """Data went between host and device, or the host waited for the device."""
        with self._lock:
            self.transfers[direction, operator, why, place()] += 1
            self.transferred[direction] += nbytes

    def note(self, text: str) -> None:
        """Something the reader of the report should know; said once."""
        if text not in self.notes:
            self.notes.add(text)
            warnings.warn(text, SimulationWarning, stacklevel=3)
