"""Flow matching: noise levels, noisy states and the loss of a velocity model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

Velocity = Callable[..., Any]
"""A model called as diffusers calls its ACE-Step transformer; returns a velocity, or a tuple."""


def noise_levels(count: int, generator: torch.Generator, shift: float = 1.0) -> torch.Tensor:
    """Noise levels `[count]` from 0 to 1 on the generator's device, spread over the batch.

    The range is divided into as many parts as there are levels, one level is drawn evenly from
    each, and they come in a random order: a step then says something of the whole way from
    noise to music. `shift` moves them as a sampler's schedule is moved, see `sampling.Schedule`.
    """
    device = generator.device
    parts = torch.randperm(count, generator=generator, device=device)
    even = (parts + torch.rand(count, generator=generator, device=device)) / count
    return shift * even / (1 + (shift - 1) * even)


def noisy(
    latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The state at each item's noise level and the velocity that a model should answer.

    Args:
        latents: clean, `[batch, frames, channels]`.
        noise: of the same shape.
        times: `[batch]`, 1 is pure noise.

    Returns:
        `(1 - t) latents + t noise` and `noise - latents`.
    """
    t = times[:, None, None]
    return (1 - t) * latents + t * noise, noise - latents


def velocity(
    model: Velocity, state: torch.Tensor, times: torch.Tensor, condition: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The model's velocity at a state, `[batch, frames, channels]`.

    Args:
        model: see `Velocity`.
        state: `[batch, frames, channels]`.
        times: `[batch]`.
        condition: `encoder_hidden_states`, `context_latents` and, where `masks.lean_masks` was
            called, `encoder_attention_mask`; whichever the model takes.
    """
    output = model(
        hidden_states=state, timestep=times, timestep_r=times, return_dict=False, **condition
    )
    answer: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return answer


def flow_loss(
    model: Velocity,
    latents: torch.Tensor,
    noise: torch.Tensor,
    times: torch.Tensor,
    condition: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Mean squared error of the velocity for each item, `[batch]`, float32."""
    state, target = noisy(latents, noise, times)
    answer = velocity(model, state, times, condition)
    error = functional.mse_loss(answer.float(), target.float(), reduction="none")
    return error.mean(dim=(1, 2))
