"""Attention as all stacks of the model have it: shared keys, normalised heads, rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import torch
from mlx import nn

from acestep.engines.mlx.arrays import from_torch

BLOCK = 128
"""Queries of a block where a window bounds what they see."""

_WINDOWED_FROM = 3
"""Windowed attention goes block by block where a song has this many times the keys of one."""

_MOST_SCORES = 2**27
"""Scores of one call, over all heads: no device needs room for more than 512 MiB of them."""


@dataclass(frozen=True)
class Shape:
    """Widths of an attention.

    Attributes:
        heads: of the queries.
        kv_heads: of keys and values; several heads of queries share one.
        head_dim: width of a head.
        eps: of the norms.
        bias: whether the products have one.
    """

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    bias: bool = False


@dataclass(frozen=True)
class Positions:
    """Rotary tables of a number of positions.

    Made on the host, by PyTorch, for a kernel's quick sine is far off at the thousandth position.

    Attributes:
        cosines: `[positions, head_dim]`.
        sines: likewise, those of the first half negative: `x cos + swap(x) sin`, halves swapped.
    """

    cosines: mx.array
    sines: mx.array

    @classmethod
    def make(cls, count: int, head_dim: int, theta: float, dtype: mx.Dtype) -> Positions:
        """Tables of the positions from 0."""
        half = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        angles = torch.arange(count, dtype=torch.float32)[:, None] / (theta**half)
        cos, sin = angles.cos(), angles.sin()
        tables = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        cosines, sines = (from_torch(table).astype(dtype) for table in tables)
        return cls(cosines, sines)

    def turn(self, heads: mx.array) -> mx.array:
        """`[batch, heads, positions, head_dim]`, turned by their positions."""
        first, second = mx.split(heads, 2, axis=-1)
        return heads * self.cosines + mx.concatenate([second, first], axis=-1) * self.sines


class Attention(nn.Module):
    """Attention over a sequence itself, or from it to another.

    Args:
        width: of the sequence.
        shape: of the attention.
    """

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape.heads, shape.kv_heads
        self.scale = shape.head_dim**-0.5
        own, shared = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.to_q = nn.Linear(width, own, bias=shape.bias)
        self.to_k = nn.Linear(width, shared, bias=shape.bias)
        self.to_v = nn.Linear(width, shared, bias=shape.bias)
        self.to_out = [nn.Linear(own, width, bias=shape.bias)]
        self.norm_q = nn.RMSNorm(shape.head_dim, shape.eps)
        self.norm_k = nn.RMSNorm(shape.head_dim, shape.eps)

    def queries(self, hidden: mx.array) -> mx.array:
        """`[batch, heads, tokens, head_dim]` of `[batch, tokens, width]`, normalised."""
        made: mx.array = self.norm_q(_split(self.to_q(hidden), self.heads))
        return made

    def keys(self, hidden: mx.array) -> mx.array:
        """`[batch, kv_heads, tokens, head_dim]` of `[batch, tokens, width]`, normalised."""
        made: mx.array = self.norm_k(_split(self.to_k(hidden), self.kv_heads))
        return made

    def values(self, hidden: mx.array) -> mx.array:
        """`[batch, kv_heads, tokens, head_dim]` of `[batch, tokens, width]`."""
        return _split(self.to_v(hidden), self.kv_heads)

    def over_itself(
        self, hidden: mx.array, positions: Positions, window: int | None, causal: bool = False
    ) -> mx.array:
        """What a sequence hears of itself, `[batch, tokens, width]`.

        Args:
            hidden: `[batch, tokens, width]`.
            positions: of the tokens.
            window: greatest distance at which tokens hear each other; None for any.
            causal: whether they hear only what is before them.
        """
        query, key = positions.turn(self.queries(hidden)), positions.turn(self.keys(hidden))
        value, tokens = self.values(hidden), hidden.shape[1]
        if causal:
            heard = mx.fast.scaled_dot_product_attention(
                query, key, value, scale=self.scale, mask="causal"
            )
        elif window is None or tokens <= window + 1:
            heard = attend(query, key, value, self.scale)
        else:
            heard = attend_within(query, key, value, self.scale, window)
        return self.out(heard)

    def out(self, heard: mx.array) -> mx.array:
        """`[batch, tokens, width]` of `[batch, heads, tokens, head_dim]`."""
        made: mx.array = self.to_out[0](heard.transpose(0, 2, 1, 3).flatten(2))
        return made


def attend(query: mx.array, key: mx.array, value: mx.array, scale: float) -> mx.array:
    """Attention to all keys, by as many queries at a time as their scores have room."""
    batch, heads, tokens, _ = query.shape
    rows = max(BLOCK, _MOST_SCORES // (batch * heads * key.shape[2]))
    parts = [
        mx.fast.scaled_dot_product_attention(
            query[:, :, first : first + rows], key, value, scale=scale
        )
        for first in range(0, tokens, rows)
    ]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def attend_within(
    query: mx.array, key: mx.array, value: mx.array, scale: float, window: int
) -> mx.array:
    """Attention to the keys that are no further than a window.

    Blocks of queries see the keys around them only, so that a song's length counts once.
    """
    tokens, reach = query.shape[2], BLOCK + 2 * window
    if tokens < _WINDOWED_FROM * reach:
        places = mx.arange(tokens)
        near = mx.abs(places[:, None] - places[None]) <= window
        return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=near)
    blocks = -(-tokens // BLOCK)
    rest = blocks * BLOCK - tokens
    first = mx.arange(blocks)[:, None, None] * BLOCK
    rows = first + mx.arange(BLOCK)[:, None]
    keys = first + mx.arange(reach)[None] - window
    near = (mx.abs(rows - keys) <= window) & (keys >= 0) & (keys < tokens)
    batch = query.shape[0]
    mask = mx.broadcast_to(near[None], (batch, *near.shape)).flatten(0, 1)[:, None]
    padded = mx.pad(query, [(0, 0), (0, 0), (0, rest), (0, 0)])
    heard = mx.fast.scaled_dot_product_attention(
        _blocks(padded, blocks, BLOCK),
        _blocks(_around(key, window, rest), blocks, reach),
        _blocks(_around(value, window, rest), blocks, reach),
        scale=scale,
        mask=mask,
    )
    # [batch * blocks, heads, BLOCK, dim] -> [batch, heads, tokens, dim]
    made = mx.unflatten(heard, 0, (batch, blocks)).transpose(0, 2, 1, 3, 4)
    return made.flatten(2, 3)[:, :, :tokens]


def _split(rows: mx.array, heads: int) -> mx.array:
    return mx.unflatten(rows, -1, (heads, -1)).transpose(0, 2, 1, 3)


def _around(rows: mx.array, window: int, rest: int) -> mx.array:
    return mx.pad(rows, [(0, 0), (0, 0), (window, window + rest), (0, 0)])


def _blocks(rows: mx.array, blocks: int, reach: int) -> mx.array:
    """Overlapping stretches of `reach` rows, one every `BLOCK`: `[batch * blocks, heads, reach,
    dim]`."""
    index = mx.arange(blocks)[:, None] * BLOCK + mx.arange(reach)[None]
    taken = mx.take(rows, index, axis=2)
    return taken.transpose(0, 2, 1, 3, 4).flatten(0, 1)
