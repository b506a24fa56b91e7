"""The audio that the cases are made from: chords with noise, seeded, `[2, samples]` at 48 kHz."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

RATE = 48000


def chord(seconds: float, amplitude: float = 0.3, seed: int = 0) -> torch.Tensor:
    """Two different chords that swell, left and right, under a little noise."""
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed)
    vibrato = 1 + 0.05 * np.sin(0.7 * time)
    left = sum(np.sin(2 * np.pi * f * time * vibrato) for f in (220, 277.2, 329.6)) / 3
    left = left + 0.1 * noise.standard_normal(time.size)
    right = sum(np.sin(2 * np.pi * f * time + 0.5) for f in (220, 440)) / 2
    right = right * (0.5 + 0.5 * np.sin(1.3 * time)) + 0.1 * noise.standard_normal(time.size)
    return torch.from_numpy((amplitude * np.stack([left, right])).astype("float32"))


INPUTS: dict[str, Callable[[], torch.Tensor]] = {
    "src": lambda: chord(6),
    "srcodd": lambda: chord(6)[:, : RATE * 6 - 777],
    "srcshort": lambda: chord(3),
    "ref": lambda: chord(35, seed=3),
    "refshort": lambda: chord(4, seed=4),
    "silent": lambda: torch.zeros(2, RATE * 6),
    "loud": lambda: chord(35, amplitude=3.0, seed=5),
}
"""Name to audio, as the cases call it."""


def arguments_of(case: dict[str, Any]) -> dict[str, Any]:
    """A case's arguments of `AceStepHandler.generate_music`, with audio for its names."""
    arguments = dict(case["arguments"])
    for name in ("src_audio", "reference_audio"):
        if name in arguments:
            arguments[name] = INPUTS[arguments[name]]()
    return arguments
