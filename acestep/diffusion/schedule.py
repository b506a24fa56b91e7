"""When the steps of the diffusion are taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from acestep.song.request import Request

TURBO_STEPS = 8
TURBO_SHIFTS = (1.0, 2.0, 3.0)
"""Turbo checkpoints learned eight evenly spaced steps, moved towards noise by these shifts."""


@dataclass(frozen=True)
class Schedule:
    """Times of the steps, falling from 1; the end, 0, is not among them."""

    times: tuple[float, ...]

    @classmethod
    def make(cls, steps: int, shift: float = 1.0, times: Sequence[float] | None = None) -> Schedule:
        """Evenly spaced times moved towards noise by `shift`, or the given ones."""
        if times is not None:
            return cls(tuple(times))
        even = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float32)[:-1]
        moved = shift * even / (1 + (shift - 1) * even) if shift != 1.0 else even
        return cls(tuple(moved.tolist()))

    @classmethod
    def of(cls, request: Request, is_turbo: bool) -> Schedule:
        """The schedule of a request; a turbo checkpoint takes custom times where it was distilled."""
        times = _asked(request)
        if times is not None and is_turbo:
            times = distilled_times(times)
        steps, shift = request.steps, request.shift
        assert steps is not None, "a request is resolved before it is served"
        assert shift is not None, "likewise"
        return cls.make(steps, shift, times)

    def __len__(self) -> int:
        return len(self.times)

    def span(self, step: int) -> tuple[float, float]:
        """Time before and after a step."""
        after = (*self.times[1:], 0.0)
        return self.times[step], after[step]


def taught_times(
    steps: int = TURBO_STEPS, shifts: Iterable[float] = TURBO_SHIFTS
) -> tuple[float, ...]:
    """Every time that a checkpoint was distilled at, falling from 1."""
    even = [(step + 1) / steps for step in range(steps)]
    return tuple(sorted({s * t / (1 + (s - 1) * t) for s in shifts for t in even}, reverse=True))


def distilled_times(
    times: Sequence[float], steps: int = TURBO_STEPS, shifts: Iterable[float] = TURBO_SHIFTS
) -> tuple[float, ...]:
    """Each time moved to the nearest that a checkpoint was distilled at, as the original does.

    Args:
        times: falling, in (0, 1].
        steps, shifts: of the distillation.
    """
    taught = taught_times(steps, shifts)
    return tuple(min(taught, key=lambda known: abs(known - time)) for time in times)


def moved_times(request: Request, is_turbo: bool) -> list[str]:
    """A notice where custom times are not those that are run."""
    asked = _asked(request)
    if not is_turbo or asked is None:
        return []
    run = distilled_times(asked)
    if all(abs(a - b) < 1e-3 for a, b in zip(asked, run, strict=True)):
        return []
    shown = ", ".join(f"{time:.3g}" for time in run)
    return [f"timesteps are moved to those that turbo was distilled at: {shown}"]


def _asked(request: Request) -> tuple[float, ...] | None:
    """The custom times of a request; the end, 0, is understood."""
    times = request.timesteps
    return None if times is None else tuple(time for time in times if time > 0)
