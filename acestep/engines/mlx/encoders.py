"""What a song is conditioned on: the text encoder, and the condition encoder after it."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from acestep.engines.mlx.layers import Stack, StackShape


class TextEncoder(Stack):
    """A Qwen3 model without a head: tokens to states, each looking back only."""

    def __init__(self, shape: StackShape, vocabulary: int) -> None:
        super().__init__(shape)
        self.embed_tokens = nn.Embedding(vocabulary, shape.width)

    def __call__(self, ids: mx.array) -> mx.array:
        """Ids `[batch, tokens]` to the last states, `[batch, tokens, width]`."""
        return self.run(self.embed_tokens(ids))


class LyricEncoder(Stack):
    """Embedded lyrics to what the transformer attends to."""

    def __init__(self, shape: StackShape, text_width: int) -> None:
        super().__init__(shape)
        self.embed_tokens = nn.Linear(text_width, shape.width)

    def __call__(self, words: mx.array) -> mx.array:
        """`[batch, tokens, text width]` to `[batch, tokens, width]`."""
        return self.run(self.embed_tokens(words))


class TimbreEncoder(Stack):
    """Latents of a reference to one token.

    Args:
        shape: of its layers.
        channels: of the latents.
        hears_token: the learned token comes before the frames, as in XL checkpoints; see
            `corrections.timbre`.
    """

    def __init__(self, shape: StackShape, channels: int, hears_token: bool) -> None:
        super().__init__(shape)
        self.embed_tokens = nn.Linear(channels, shape.width)
        self.special_token = mx.zeros((1, 1, shape.width))
        self.hears_token = hears_token

    def __call__(self, latents: mx.array) -> mx.array:
        """`[batch, frames, channels]` to `[batch, 1, width]`, read off the first place."""
        hidden = self.embed_tokens(latents)
        if self.hears_token:
            token = mx.broadcast_to(self.special_token, (len(hidden), 1, hidden.shape[-1]))
            hidden = mx.concatenate([token.astype(hidden.dtype), hidden], axis=1)
        return self.run(hidden)[:, :1]


class ConditionEncoder(nn.Module):
    """The lyric and the timbre encoder, what brings text to their width, and the condition that
    says nothing."""

    def __init__(
        self,
        lyric: StackShape,
        timbre: StackShape,
        text_width: int,
        channels: int,
        hears_token: bool,
    ) -> None:
        super().__init__()
        self.text_projector = nn.Linear(text_width, lyric.width, bias=False)
        self.lyric_encoder = LyricEncoder(lyric, text_width)
        self.timbre_encoder = TimbreEncoder(timbre, channels, hears_token)
        self.null_condition_emb = mx.zeros((1, 1, lyric.width))
