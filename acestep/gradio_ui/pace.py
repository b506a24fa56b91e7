"""How long what is left of a job takes: stages weighed by what they took before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

PRIORS = {"planning": 0.30, "diffusion": 0.05, "decoding": 0.05, "finishing": 0.05}
"""Seconds per second of music, or per song for the last, until a service has made two songs.

Measured with the built-in checkpoint on two CPU cores; only their ratios matter.
"""

# Below this share of the work, or of a second, the pace so far says nothing.
_ENOUGH_TO_TELL, _ENOUGH_SECONDS = 0.05, 0.4
# How much a new song changes what was learnt.
_NEWEST = 0.6

Clock = Callable[[], float]


@dataclass
class Course:
    """One job's way through its stages.

    Attributes:
        weights: expected seconds of each stage, in order.
        learnt: whether they were measured here; then they tell the time before there is a pace.
        clock: tells the time in seconds.
    """

    weights: dict[str, float]
    learnt: bool = False
    clock: Clock = time.monotonic
    fraction: float = 0.0
    began: float | None = None
    took: dict[str, float] = field(default_factory=dict)
    _stage: str = ""
    _since: float = 0.0

    def at(self, stage: str, part: float) -> float:
        """Note that a stage is done to a part of it; how far the whole is, never less than before."""
        now = self.clock()
        if self.began is None:
            self.began = now
        if stage != self._stage:
            self._close(now)
            self._stage, self._since = stage, now
        names, total = list(self.weights), sum(self.weights.values())
        before = sum(self.weights[name] for name in names[: names.index(stage)])
        done = before + self.weights[stage] * min(max(part, 0.0), 1.0)
        self.fraction = max(self.fraction, done / total)
        return self.fraction

    def end(self) -> None:
        """Note that the last stage is over."""
        self._close(self.clock())

    @property
    def seconds_left(self) -> float | None:
        """What is left at the pace so far, or None while there is none."""
        if self.began is None:
            return None
        spent, total = self.clock() - self.began, sum(self.weights.values())
        if self.fraction >= _ENOUGH_TO_TELL and spent >= _ENOUGH_SECONDS:
            return spent * (1 - self.fraction) / self.fraction
        return max(total - spent, 0.0) if self.learnt else None

    def _close(self, now: float) -> None:
        if self._stage:
            self.took[self._stage] = self.took.get(self._stage, 0.0) + now - self._since
            self._stage = ""


class Pace:
    """What a service's stages take, learnt from the songs that it has made."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._seconds: dict[str, float] = {}
        self._songs = 0
        self._clock, self._lock = clock, threading.Lock()

    def course(self, work: Mapping[str, float]) -> Course:
        """A way through stages.

        Args:
            work: for each stage, in order, how much of it: seconds of music, times what makes
                it dearer.
        """
        with self._lock:
            measured = self._seconds.keys() >= work.keys()
            rates = {**PRIORS, **(self._seconds if measured else {})}
        weights = {stage: rates[stage] * amount for stage, amount in work.items()}
        return Course(weights, measured, self._clock)

    def learn(self, course: Course, work: Mapping[str, float]) -> None:
        """Remember what the stages of a finished job took."""
        course.end()
        with self._lock:
            self._songs += 1
            if self._songs == 1:
                # The first song takes what happens only once, too.
                return
            for stage, seconds in course.took.items():
                rate = seconds / max(work[stage], 1e-9)
                before = self._seconds.get(stage, rate)
                self._seconds[stage] = before + _NEWEST * (rate - before)

    def forget(self) -> None:
        """Another checkpoint or device has another pace."""
        with self._lock:
            self._seconds.clear()
            self._songs = 0
