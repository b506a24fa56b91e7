"""When the steps of the diffusion are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from acestep.song.request import Request


@dataclass(frozen=True)
class Schedule:
    """Times of the steps, falling from 1; the end, 0, is not among them."""

    times: tuple[float, ...]

    @classmethod
    def make(cls, steps: int, shift: float = 1.0, times: Sequence[float] | None = None) -> Schedule:
        """Evenly spaced times moved towards noise by `shift`, or the given ones."""
        if times is not None:
            # The end is understood.
            return cls(tuple(time for time in times if time > 0))
        even = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float32)[:-1]
        moved = shift * even / (1 + (shift - 1) * even) if shift != 1.0 else even
        return cls(tuple(moved.tolist()))

    @classmethod
    def of(cls, request: Request, is_turbo: bool) -> Schedule:
        """The schedule of a request; a turbo checkpoint takes custom times where it was distilled."""
        times = request.timesteps
        if times is not None and is_turbo:
            times = tuple(distilled_times(times))
        return cls.make(request.steps, request.shift, times)

    def __len__(self) -> int:
        return len(self.times)

    def span(self, step: int) -> tuple[float, float]:
        """Time before and after a step."""
        after = (*self.times[1:], 0.0)
        return self.times[step], after[step]


DISTILLED_STEPS, DISTILLED_SHIFTS = 8, (1.0, 2.0, 3.0)
"""What ACE-Step 1.5's turbo checkpoints were distilled at."""


def distilled_times(times: Sequence[float]) -> list[float]:
    """Each time moved to the nearest that turbo was distilled at; the end, 0, is dropped."""
    even = [step / DISTILLED_STEPS for step in range(1, DISTILLED_STEPS + 1)]
    known = {s * t / (1 + (s - 1) * t) for s in DISTILLED_SHIFTS for t in even}
    return [min(sorted(known), key=lambda t: abs(t - time)) for time in times if time > 0]
