"""The layers that every stack is made of: a gated MLP, and one of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn

from acestep.engines.mlx.attention import Attention, Positions, Shape


class Mlp(nn.Module):
    """A gated MLP (SwiGLU)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def __call__(self, hidden: mx.array) -> mx.array:
        """`[…, width]` to the same."""
        made: mx.array = self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return made


def silu(values: mx.array) -> mx.array:
    """`x * sigmoid(x)`; MLX's own wants a compiler on the host."""
    return values * mx.sigmoid(values)


@dataclass(frozen=True)
class StackShape:
    """Widths of a stack of encoder layers.

    Attributes:
        width: of a token.
        inner: of the MLPs.
        attention: of all layers.
        windows: a layer each, greatest distance at which tokens hear each other, or None.
        theta: base of the rotary positions.
        causal: whether tokens hear only what is before them.
    """

    width: int
    inner: int
    attention: Shape
    windows: Sequence[int | None]
    theta: float
    causal: bool = False


class EncoderLayer(nn.Module):
    """Attention of a sequence to itself, and an MLP, each after a norm and beside the sequence."""

    def __init__(self, shape: StackShape, window: int | None) -> None:
        super().__init__()
        eps = shape.attention.eps
        self.window, self.causal = window, shape.causal
        self.self_attn = Attention(shape.width, shape.attention)
        self.input_layernorm = nn.RMSNorm(shape.width, eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps)
        self.mlp = Mlp(shape.width, shape.inner)

    def __call__(self, hidden: mx.array, positions: Positions) -> mx.array:
        """`[batch, tokens, width]` to the same."""
        normed = self.input_layernorm(hidden)
        hidden = hidden + self.self_attn.over_itself(normed, positions, self.window, self.causal)
        made: mx.array = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return made


class Stack(nn.Module):
    """Encoder layers one after the other, and a norm at the end."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        self.layers = [EncoderLayer(shape, window) for window in shape.windows]
        self.norm = nn.RMSNorm(shape.width, shape.attention.eps)
        self.head_dim, self.theta = shape.attention.head_dim, shape.theta

    def run(self, hidden: mx.array) -> mx.array:
        """`[batch, tokens, width]` to the same."""
        positions = Positions.make(hidden.shape[1], self.head_dim, self.theta, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, positions)
        made: mx.array = self.norm(hidden)
        return made
