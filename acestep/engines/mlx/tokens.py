"""Audio codes: latents to whole numbers, five frames to one, and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import mlx.core as mx
from mlx import nn

from acestep.engines.mlx.layers import Stack, StackShape


class Pooler(Stack):
    """A few frames to one token, read off a learned one before them."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.embed_tokens = nn.Linear(shape.width, shape.width)
        self.special_token = mx.zeros((1, 1, shape.width))

    def __call__(self, frames: mx.array) -> mx.array:
        """`[codes, frames of one, width]` to `[codes, width]`."""
        hidden = self.embed_tokens(frames)
        token = mx.broadcast_to(self.special_token, (len(hidden), 1, hidden.shape[-1]))
        return self.run(mx.concatenate([token.astype(hidden.dtype), hidden], axis=1))[:, 0]


class Quantiser(nn.Module):
    """Finite scalar quantisation: each of a few channels to the nearest of its levels.

    Computed in float32 whatever the weights are, as the model was trained.
    """

    def __init__(self, width: int, levels: Sequence[int]) -> None:
        super().__init__()
        self.project_in = nn.Linear(width, len(levels))
        self.project_out = nn.Linear(len(levels), width)
        self._levels = list(levels)
        self._basis = list(itertools.accumulate([1, *levels[:-1]], lambda a, b: a * b))

    @property
    def size(self) -> int:
        """How many codes there are."""
        return math.prod(self._levels)

    def codes(self, hidden: mx.array) -> mx.array:
        """`[…, width]` to codes `[…]`."""
        last = mx.array(self._levels, dtype=mx.float32) - 1
        held = _precisely(self.project_in, hidden)
        soft = 1 + 1 / last
        held = mx.tanh(held / soft) * soft
        steps = mx.floor(last * (mx.clip(held, -1, 1) + 1) / 2 + 0.5)
        return (steps * mx.array(self._basis, dtype=mx.float32)).sum(axis=-1).astype(mx.int32)

    def embedded(self, codes: mx.array) -> mx.array:
        """Codes `[…]` to `[…, width]`, float32."""
        levels, basis = mx.array(self._levels), mx.array(self._basis)
        steps = ((codes[..., None] // basis) % levels).astype(mx.float32)
        held = steps * (2 / (levels.astype(mx.float32) - 1)) - 1
        return _precisely(self.project_out, held)


class AudioTokenizer(nn.Module):
    """Latents to audio codes."""

    def __init__(self, shape: StackShape, channels: int, width: int, levels: Sequence[int]) -> None:
        super().__init__()
        self.audio_acoustic_proj = nn.Linear(channels, shape.width)
        self.attention_pooler = Pooler(shape)
        self.quantizer = Quantiser(width, levels)

    def __call__(self, latents: mx.array) -> mx.array:
        """`[codes, frames of one, channels]` to codes `[codes]`."""
        pooled = self.attention_pooler(self.audio_acoustic_proj(latents))
        return self.quantizer.codes(pooled)


class Detokenizer(Stack):
    """Embedded codes to latents, several frames each."""

    def __init__(self, shape: StackShape, channels: int, frames: int) -> None:
        super().__init__(shape)
        self.embed_tokens = nn.Linear(shape.width, shape.width)
        self.special_tokens = mx.zeros((1, frames, shape.width))
        self.proj_out = nn.Linear(shape.width, channels)

    def __call__(self, embedded: mx.array) -> mx.array:
        """`[codes, width]` to latents `[codes * frames, channels]`."""
        hidden = self.embed_tokens(embedded)[:, None] + self.special_tokens
        made: mx.array = self.proj_out(self.run(hidden.astype(embedded.dtype)))
        return made.flatten(0, 1)


def _precisely(linear: nn.Linear, hidden: mx.array) -> mx.array:
    weight, bias = linear["weight"].astype(mx.float32), linear["bias"].astype(mx.float32)
    made: mx.array = hidden.astype(mx.float32) @ weight.T + bias
    return made
