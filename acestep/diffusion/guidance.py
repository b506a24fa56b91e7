"""Guidance: how the answers with and without the condition become one velocity."""

from __future__ import annotations

from typing import Protocol

from acestep.engines.protocol import Array, Engine

MOMENTUM = -0.75
GUIDANCE_NORM = 2.5
"""Adaptive projected guidance as ACE-Step 1.5 sets it."""

MAX_ANGLE = 3.14 / 6
"""How far angle-domain guidance turns an estimate, in radians; the original rounds pi so."""


class Guidance(Protocol):
    """Makes one velocity of two, step by step."""

    def __call__(self, state: Array, wanted: Array, unconditional: Array, time: float) -> Array:
        """The guided velocity.

        Args:
            state: `[batch, frames, channels]`, like the velocities.
            wanted: the velocity under the condition.
            unconditional: the velocity under none.
            time: of the step, 1 for noise.
        """
        ...


class ProjectedGuidance:
    """Adaptive projected guidance: pushes away from the unconditional answer, but not along
    the conditional one, and never by more than a fixed norm. Keeps momentum between calls."""

    def __init__(self, engine: Engine, scale: float) -> None:
        self._engine, self.scale = engine, scale
        self._average: Array = 0.0

    def __call__(self, state: Array, wanted: Array, unconditional: Array, time: float) -> Array:
        """See `Guidance`."""
        xp, precise = self._engine.xp, self._engine.precise
        answer = precise(wanted)
        difference = answer - precise(unconditional) + MOMENTUM * self._average
        self._average = difference
        norm = self._norm(difference)
        difference = difference * xp.clip(GUIDANCE_NORM / xp.clip(norm, 1e-30, None), None, 1.0)
        direction = answer / xp.clip(self._norm(answer), 1e-12, None)
        along = (difference * direction).sum(axis=1, keepdims=True) * direction
        return wanted + (self.scale - 1.0) * (difference - along)

    def _norm(self, array: Array) -> Array:
        """Of each channel over the song, as ACE-Step 1.5 takes it."""
        return self._engine.xp.sqrt((array * array).sum(axis=1, keepdims=True))


class AngleGuidance:
    """Angle-domain guidance: turns the clean estimate away from the unconditional one by an
    angle, frame by frame.

    The original computes the cosine in float64, which not every device has; float32 differs
    by less than the clamp of the cosine does.
    """

    def __init__(self, engine: Engine, scale: float) -> None:
        self._engine = engine
        self._weight = max(scale - 1.0, 0.0) + 1e-3

    def __call__(self, state: Array, wanted: Array, unconditional: Array, time: float) -> Array:
        """See `Guidance`."""
        xp, precise = self._engine.xp, self._engine.precise
        state = precise(state)
        here = state - time * precise(wanted)
        away = state - time * precise(unconditional)
        cosine = _dot(here, away) / (xp.sqrt(_dot(here, here)) * xp.sqrt(_dot(away, away)))
        angle = xp.arccos(xp.clip(cosine, -(1 - 1e-6), 1 - 1e-6))
        turned = xp.clip(self._weight * angle, -MAX_ANGLE, MAX_ANGLE)
        difference = here - away
        across = difference - _dot(difference, away) / (_dot(away, away) + 1e-8) * away
        sine = xp.sin(angle)
        small = sine <= 1e-3
        ratio = xp.where(small, self._weight + 0 * sine, xp.sin(turned) / sine)
        clean = here * xp.cos(turned) + across * ratio
        return (state - clean) / time


def _dot(first: Array, second: Array) -> Array:
    """Of every frame, over channels."""
    return (first * second).sum(axis=2, keepdims=True)
