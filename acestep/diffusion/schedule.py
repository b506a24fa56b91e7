"""The times that guidance-distilled checkpoints learned, and the nearest of them to any others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

TURBO_STEPS = 8
TURBO_SHIFTS = (1.0, 2.0, 3.0)
"""Turbo checkpoints learned eight evenly spaced steps, moved towards noise by these shifts."""


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
