"""How far a song is, how long its stages took, and whether it is still wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from acestep.errors import CancelledError

Progress = Callable[..., Any]
"""Called as `progress(fraction, desc=text)` with 0 <= fraction <= 1."""


class Report:
    """Passes progress on, and stops the work where the caller asked for it."""

    def __init__(self, progress: Progress | None, cancel: threading.Event) -> None:
        self._progress, self._cancel = progress, cancel

    def __call__(self, fraction: float, text: str) -> None:
        if self._cancel.is_set():
            raise CancelledError("cancelled")
        if self._progress is not None:
            self._progress(fraction, desc=text)

    def part(self, low: float, high: float, done: float, text: str) -> None:
        self(low + (high - low) * done, text)


def share(progress: Progress | None, low: float, high: float) -> Progress | None:
    """A callback for a part of the work, which runs from `low` to `high` of the whole."""
    if progress is None or (low, high) == (0.0, 1.0):
        return progress
    whole = progress

    def told(fraction: float, desc: str = "") -> None:
        whole(low + (high - low) * fraction, desc=desc)

    return told


class Clock:
    """Seconds spent in named stages, with the device's work finished at their ends.

    Args:
        synchronize: waits for the device.
    """

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._synchronize()
        self.seconds[stage] = time.perf_counter() - start
