"""A checkpoint in either engine, and what the tests ask of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from acestep.checkpoint.finding import find
from acestep.device import resolve
from acestep.engines.loading import Options, load_engine

ORIGINAL = Path(__file__).parents[2] / "original" / "checkpoints"

TEXT, LYRICS = list(range(3, 40)), list(range(9, 160))
TIMES = (1.0, 0.625, 0.3)
BOUND = 2e-5
"""Of what both round, in float32."""


def encoded(engine: Any) -> Any:
    sung, read = engine.encode_words(TEXT, LYRICS)
    return engine.xp.concatenate([sung, engine.encode_timbre(None), read], axis=1)


def velocities(engine: Any, state: torch.Tensor) -> torch.Tensor:
    """Of each time, one after the other; the last from a batch with no condition."""
    tokens = torch.linspace(-2, 2, 70 * engine.traits.condition_width).sin().reshape(1, 70, -1)
    frames, width = state.shape[1], engine.traits.context_width - engine.traits.channels
    context = torch.cat([engine.silence(frames)[None], torch.ones(1, frames, width)], dim=-1)
    with engine.working():
        condition, start = engine.array(tokens), engine.array(state)
        if isinstance(condition, torch.Tensor):
            condition = condition.to(engine.policy.dtype)
        run = engine.velocity(condition, context, TIMES)
        made = [run(start, step) for step in range(len(TIMES))]
        nothing = engine.unconditional(condition)
        both = engine.velocity(
            engine.xp.concatenate([condition, nothing], axis=0), context.repeat(2, 1, 1), TIMES
        )
        made.append(both(engine.xp.concatenate([start, start], axis=0), 1))
        return torch.cat([engine.host(array) for array in made])


def worst(first: torch.Tensor, second: torch.Tensor) -> float:
    assert first.shape == second.shape
    return float((first - second).abs().max())


def load(name: str, engine: str, **options: Any) -> Any:
    """One of the original's checkpoints in an engine, float32 unless `dtype` says otherwise."""
    dtype, bits = options.pop("dtype", "float32"), options.pop("quantization", None)
    policy = resolve("cpu", dtype=dtype, engine=engine, quantization=bits)
    return load_engine(find(str(ORIGINAL / f"acestep-v15-{name}")), policy, Options(**options))
