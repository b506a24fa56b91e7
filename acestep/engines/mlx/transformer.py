"""The diffusion transformer a step at a time, with all that a song's steps share computed once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import torch
from mlx import nn

from acestep.engines.mlx.arrays import from_torch
from acestep.engines.mlx.attention import Attention, Positions, Shape, attend
from acestep.engines.mlx.layers import Mlp, silu

_TIME_CHANNELS, _TIME_SCALE, _LONGEST_PERIOD = 256, 1000.0, 10000


@dataclass(frozen=True)
class TransformerShape:
    """Widths of a transformer.

    Attributes:
        width: of a token.
        inner: of the MLPs.
        attention: of all layers.
        windows: a layer each, greatest distance at which tokens hear each other, or None.
        theta: base of the rotary positions.
        condition_width: of a token of the condition.
        channels: of a latent frame.
        context_width: channels of the context.
        patch: latent frames of a token.
    """

    width: int
    inner: int
    attention: Shape
    windows: Sequence[int | None]
    theta: float
    condition_width: int
    channels: int
    context_width: int
    patch: int


@dataclass(frozen=True)
class SongInputs:
    """What stays the same through the steps of one batch.

    Attributes:
        keys: of the cross-attention, a layer each, `[batch, kv_heads, tokens, head_dim]`.
        values: likewise.
        context: the context's share of the patch embedding, `[batch, patches, width]`.
        positions: of the patches.
    """

    keys: Sequence[mx.array]
    values: Sequence[mx.array]
    context: mx.array
    positions: Positions

    def arrays(self) -> dict[str, Any]:
        """All of it as what MLX's own functions take."""
        turned = self.positions
        return {
            "keys": list(self.keys),
            "values": list(self.values),
            "context": self.context,
            "positions": [turned.cosines, turned.sines],
        }

    @classmethod
    def of(cls, arrays: dict[str, Any]) -> SongInputs:
        """What `arrays` made, back in shape."""
        return cls(**{**arrays, "positions": Positions(*arrays["positions"])})


class TimeEmbedding(nn.Module):
    """A time to the shifts, scales and gates of the layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(_TIME_CHANNELS, width)
        self.linear_2 = nn.Linear(width, width)
        self.time_proj = nn.Linear(width, 6 * width)

    def __call__(self, times: mx.array) -> tuple[mx.array, mx.array]:
        """What `waves` makes of times, `[steps, channels]`, to `[steps, width]` and
        `[steps, 6, width]`."""
        plain = self.linear_2(silu(self.linear_1(times)))
        return plain, mx.unflatten(self.time_proj(silu(plain)), 1, (6, -1))


def waves(times: Sequence[float]) -> torch.Tensor:
    """Sinusoids of times, `[steps, channels]`, float32 on the host, as diffusers rounds them."""
    half = _TIME_CHANNELS // 2
    rates = torch.exp(-math.log(_LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32) / half)
    angles = torch.tensor(list(times), dtype=torch.float32)[:, None] * _TIME_SCALE * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Layer(nn.Module):
    """Attention, attention to the condition, and an MLP; the first and last shifted, scaled and
    gated by the time."""

    def __init__(self, shape: TransformerShape, window: int | None) -> None:
        super().__init__()
        eps, width = shape.attention.eps, shape.width
        self.window = window
        self.self_attn_norm = nn.RMSNorm(width, eps)
        self.self_attn = Attention(width, shape.attention)
        self.cross_attn_norm = nn.RMSNorm(width, eps)
        self.cross_attn = Attention(width, shape.attention)
        self.mlp_norm = nn.RMSNorm(width, eps)
        self.mlp = Mlp(width, shape.inner)
        self.scale_shift_table = mx.zeros((1, 6, width))

    def __call__(
        self,
        hidden: mx.array,
        key: mx.array,
        value: mx.array,
        times: mx.array,
        positions: Positions,
    ) -> mx.array:
        """`[batch, patches, width]` to the same.

        Args:
            hidden: `[batch, patches, width]`.
            key, value: of the condition, `[batch, kv_heads, tokens, head_dim]`.
            times: `[6, width]`, of one step.
            positions: of the patches.
        """
        hidden, mlp = self.heard(hidden, times, positions)
        cross = self.cross_attn
        query = cross.queries(self.cross_attn_norm(hidden))
        hidden = hidden + cross.out(attend(query, key, value, cross.scale))
        shift, scale, gate = mlp
        made: mx.array = self.mlp(self.mlp_norm(hidden) * (1 + scale) + shift)
        return hidden + made * gate

    def heard(
        self, hidden: mx.array, times: mx.array, positions: Positions
    ) -> tuple[mx.array, list[mx.array]]:
        """After the attention to itself; and shift, scale and gate of the MLP."""
        rows = self.scale_shift_table[0] + times
        shift, scale, gate, *mlp = (rows[number] for number in range(6))
        normed = self.self_attn_norm(hidden) * (1 + scale) + shift
        return hidden + self.self_attn.over_itself(normed, positions, self.window) * gate, mlp


class Transformer(nn.Module):
    """Velocities of latents, under a condition and a context."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        width = shape.width
        self.shape_of = shape
        self.layers = [Layer(shape, window) for window in shape.windows]
        # Convolutions whose stride is their kernel: products over patches.
        self.proj_in = nn.Linear(shape.patch * (shape.context_width + shape.channels), width)
        self.proj_out = nn.Linear(width, shape.patch * shape.channels)
        self.time_embed = TimeEmbedding(width)
        self.time_embed_r = TimeEmbedding(width)
        self.condition_embedder = nn.Linear(shape.condition_width, width)
        self.norm_out = nn.RMSNorm(width, shape.attention.eps)
        self.scale_shift_table = mx.zeros((1, 2, width))

    @property
    def dtype(self) -> mx.Dtype:
        """Of the weights."""
        dtype: mx.Dtype = self.norm_out["weight"].dtype
        return dtype

    def song(self, encoded: mx.array, context: mx.array) -> SongInputs:
        """What the steps of a batch share.

        Args:
            encoded: the condition, `[batch, tokens, width]`.
            context: `[batch, frames, context width]`.
        """
        shape = self.shape_of
        embedded = self.condition_embedder(encoded.astype(self.dtype))
        # The layers read context and latents side by side, frame by frame.
        given = mx.pad(
            context.astype(self.dtype),
            [(0, 0), (0, -context.shape[1] % shape.patch), (0, shape.channels)],
        )
        attention = shape.attention
        patches = given.shape[1] // shape.patch
        return SongInputs(
            [layer.cross_attn.keys(embedded) for layer in self.layers],
            [layer.cross_attn.values(embedded) for layer in self.layers],
            self.proj_in(mx.unflatten(given, 1, (patches, -1)).flatten(2)),
            Positions.make(patches, attention.head_dim, shape.theta, self.dtype),
        )

    def times(self, times: Sequence[float]) -> tuple[mx.array, mx.array]:
        """Embeddings of all steps' times: `[steps, width]` and `[steps, 6, width]`."""
        plain, layers = self.time_embed(from_torch(waves(times)).astype(self.dtype))
        # The second time of a step is the first's distance to itself.
        plain_r, layers_r = self.time_embed_r(from_torch(waves([0.0])).astype(self.dtype))
        return plain + plain_r, layers + layers_r

    def __call__(
        self, latents: mx.array, song: SongInputs, plain: mx.array, layers: mx.array
    ) -> mx.array:
        """The velocity at one time, `[batch, frames, channels]`.

        Args:
            latents: `[batch, frames, channels]`.
            song: what the steps share.
            plain: `[width]`, a row of `times`.
            layers: `[6, width]`, likewise.
        """
        hidden = self._opened(latents, song)
        for layer, key, value in zip(self.layers, song.keys, song.values, strict=True):
            hidden = layer(hidden, key, value, layers, song.positions)
        shift, scale = self.scale_shift_table[0] + plain
        made = self.proj_out(self.norm_out(hidden) * (1 + scale) + shift)
        frames = mx.unflatten(made, 2, (self.shape_of.patch, -1)).flatten(1, 2)
        return frames[:, : latents.shape[1]]

    def weights(
        self,
        latents: mx.array,
        song: SongInputs,
        layers: mx.array,
        heads: Mapping[int, Sequence[int]],
    ) -> mx.array:
        """Where some heads of the cross-attention look, `[batch, heads, patches, tokens]`.

        Args:
            latents, song, layers: as for a call.
            heads: layer to heads; layers after the last one are not run.
        """
        hidden, found = self._opened(latents, song), []
        for number in range(max(heads) + 1):
            layer, key = self.layers[number], song.keys[number]
            if chosen := list(heads.get(number, ())):
                found.append(self._looked(layer, hidden, key, layers, song, chosen))
            hidden = layer(hidden, key, song.values[number], layers, song.positions)
        return mx.concatenate(found, axis=1)

    def _looked(
        self,
        layer: Layer,
        hidden: mx.array,
        key: mx.array,
        layers: mx.array,
        song: SongInputs,
        chosen: list[int],
    ) -> mx.array:
        heard, _ = layer.heard(hidden, layers, song.positions)
        cross = layer.cross_attn
        query = cross.queries(layer.cross_attn_norm(heard))[:, mx.array(chosen)]
        shared = mx.array([head // (cross.heads // cross.kv_heads) for head in chosen])
        scores = query.astype(mx.float32) @ key[:, shared].astype(mx.float32).swapaxes(2, 3)
        return mx.softmax(scores * cross.scale, axis=-1)

    def _opened(self, latents: mx.array, song: SongInputs) -> mx.array:
        """Latents and context as tokens, `[batch, patches, width]`."""
        shape = self.shape_of
        pad = [(0, 0), (0, -latents.shape[1] % shape.patch), (shape.context_width, 0)]
        given = mx.pad(latents.astype(self.dtype), pad)
        patches = mx.unflatten(given, 1, (-1, shape.patch)).flatten(2)
        made: mx.array = patches @ self.proj_in["weight"].T + song.context
        return made
