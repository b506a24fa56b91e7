"""Settings of a training run, checked before any work is done."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from acestep.errors import RequestError

# The projections of self- and cross-attention and of the feed-forward part, under the
# names diffusers gives them.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        steps: optimiser steps.
        batch_size: clips in one forward pass, on each device.
        accumulate: forward passes whose gradients make one step.
        learning_rate: after the warm-up.
        warmup: steps over which the learning rate rises from zero.
        weight_decay: of AdamW.
        max_gradient_norm: gradients are scaled down to this norm.
        lora_rank: rank of the adapter; 0 trains every weight of the transformer.
        lora_alpha: its scale is alpha / rank; None takes the rank.
        dtype: precision, one of `device.DTYPE_CHOICES`; None takes the device's own for
            training (float32 on MPS and CPU, bfloat16 autocast on CUDA).
        seed: of weights, order, noise and crops.
        crop_seconds: longest stretch of a clip that is trained on at once.
        time_shift: how far the even noise levels are moved towards noise, where a sampler of
            few steps decides what is heard; 1 leaves them even, see `flow.noise_levels`.
        save_every: steps between checkpoints; 0 saves only at the end.
        sample_every: steps between samples; 0 makes none.
        sample_prompt: what the samples are of; empty takes the first clip's caption.
    """

    steps: int = 1000
    batch_size: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: int = 10
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    lora_rank: int = 16
    lora_alpha: float | None = None
    dtype: str | None = None
    seed: int = 0
    crop_seconds: float = 30.0
    time_shift: float = 2.0
    save_every: int = 100
    sample_every: int = 0
    sample_prompt: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            RequestError: names the setting, its value and what was expected.
        """
        for name, low in (
            ("steps", 1),
            ("batch_size", 1),
            ("accumulate", 1),
            ("warmup", 0),
            ("weight_decay", 0),
            ("lora_rank", 0),
            ("seed", 0),
            ("save_every", 0),
            ("sample_every", 0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low):
                raise RequestError(f"{name} {value:g} is out of range; expected at least {low}")
        for name in ("learning_rate", "max_gradient_norm", "crop_seconds", "time_shift"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"{name} {value:g} is out of range; expected above 0")
        if self.lora_alpha is not None and not (
            math.isfinite(self.lora_alpha) and self.lora_alpha > 0
        ):
            raise RequestError(f"lora_alpha {self.lora_alpha:g} is out of range; expected above 0")

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0: a linear rise, then a half cosine to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def plain(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return dataclasses.asdict(self)
