"""The diffusion transformer's step, with all that a song's steps share computed once.

diffusers' transformer projects the condition to keys and values, and builds rotary tables
and masks, again in every layer of every step. Here they are made once a song; what is left
of a step is written with few, larger operations. The weights are those of diffusers' modules
and the result is theirs up to rounding; low-rank adapters on them keep working.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from acestep.device import DevicePolicy
from acestep.engines.torch import quantised
from acestep.engines.torch.addresses import align, places
from acestep.engines.torch.attention import Attention


@dataclass(frozen=True)
class SongInputs:
    """What stays the same through the steps of one batch.

    Attributes:
        keys: of the cross-attention, a layer each, `[batch, tokens, kv_heads, head_dim]`.
        values: the same of the values.
        context: the context latents' share of the patch embedding, `[batch, patches, width]`.
        rotary: cosines and signed sines, each `[patches, 1, head_dim]`.
        attention: how attention is computed at this length.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    context: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor]
    attention: Attention


class StepTransformer:
    """Runs the weights of a `diffusers.AceStepTransformer1DModel` a step at a time.

    Joined weights replace the storage of the modules' own, so nothing is held twice.

    Args:
        model: on its device, in evaluation mode. It stays usable, and in step with this.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        self.patch: int = config.patch_size
        self.channels: int = config.audio_acoustic_hidden_dim
        self.head_dim: int = config.head_dim
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.window: int = config.sliding_window
        with torch.no_grad():
            align(model)
            self.layers = [_Layer(layer) for layer in model.layers]
            self._tables = torch.cat([layer.scale_shift_table for layer in model.layers])
            # Gains of the norms before attention and MLP, to go into the scales that follow them.
            gains = [(la.self_attn_norm.weight, la.mlp_norm.weight) for la in model.layers]
            self._gains = torch.stack([torch.stack(pair) for pair in gains])
            # A convolution whose stride is its kernel is a product over patches.
            weight = model.proj_in_conv.weight.mT.flatten(1)
            by_frame = torch.unflatten(weight, 1, (self.patch, -1))
            width = config.in_channels - self.channels
            self._context_weight = by_frame[:, :, :width].flatten(1).contiguous()
            self._latent_weight = by_frame[:, :, width:].flatten(1).contiguous()
            self._out_weight = model.proj_out_conv.weight.permute(2, 1, 0).flatten(0, 1)
            self._out_weight = self._out_weight.contiguous()
            self._out_bias = model.proj_out_conv.bias.repeat(self.patch)
        self._signature = places(*model.layers)
        self._kernels: Any = None

    def is_current(self, model: Any) -> bool:
        """Whether the model still has the weights, at the places, that were read here."""
        return model is self.model and places(*model.layers) == self._signature

    def compile(self, policy: DevicePolicy) -> None:
        """Fuse the layers' arithmetic: by kernels of our own where the device runs them, else by
        inductor on first use, where one compilation serves all layers."""
        if policy.has_tile_kernels(self.model.dtype) and self.head_dim.bit_count() == 1:
            self._kernels = importlib.import_module("acestep.engines.torch._step_kernels")
            return
        run = torch.compile(_run_layer, dynamic=True)
        for layer in self.layers:
            layer.compiled = run

    def patches(self, frames: int) -> int:
        """Tokens for a number of latent frames."""
        return -(-frames // self.patch)

    def rotary(self, patches: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines `[patches, 1, head_dim]`.

        The sign of the half-rotation is in the sines: `x cos + swap(x) sin`, halves swapped.
        """
        half = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        angles = torch.arange(patches, dtype=torch.float32)[:, None] / (self.model.rope_theta**half)
        cos, sin = angles.cos(), angles.sin()
        tables = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        cosines, sines = (table[:, None].to(like.device, like.dtype) for table in tables)
        return cosines, sines

    def condition(self, encoded: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values of every layer's cross-attention.

        Args:
            encoded: `[batch, tokens, width]`, as the condition encoder gives it.
        """
        embedded = self.model.condition_embedder(encoded)
        pairs = [layer.condition(embedded) for layer in self.layers]
        return [key for key, _ in pairs], [value for _, value in pairs]

    def context(self, latents: torch.Tensor) -> torch.Tensor:
        """The patch embedding's share of the context, `[batch, patches, width]`.

        Args:
            latents: `[batch, frames, 2 * channels]`.
        """
        return F.linear(self._patched(latents), self._context_weight, self.model.proj_in_conv.bias)

    def times(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of all steps' times at once.

        Args:
            timesteps: `[steps]` in (0, 1], in the model's dtype.

        Returns:
            `[steps, 1, width]` for the output, `[steps, 6, width]` for the layers.
        """
        model = self.model
        plain, layers = model.time_embed(timesteps)
        plain_r, layers_r = model.time_embed_r(torch.zeros_like(timesteps[:1]))
        return (plain + plain_r)[:, None], layers + layers_r

    def __call__(
        self, latents: torch.Tensor, song: SongInputs, plain: torch.Tensor, layers: torch.Tensor
    ) -> torch.Tensor:
        """The velocity at one time.

        Args:
            latents: `[batch, frames, channels]` in the model's dtype.
            song: what the steps share.
            plain: `[1, width]`, a row of `times`.
            layers: `[6, width]`, a row of `times`.

        Returns:
            `[batch, frames, channels]`.
        """
        frames = latents.shape[1]
        hidden = F.linear(self._patched(latents), self._latent_weight) + song.context
        # For all layers at once: shift, scale, gate before attention, the same before the MLP.
        shifts = self._tables + layers
        scales = (shifts[:, 1::3] + 1) * self._gains
        shift, scale = (self.model.scale_shift_table[0] + plain).unbind()
        scale = (scale + 1) * self.model.norm_out.weight
        if self._kernels is not None:
            hidden = self._fused(hidden, shifts, scales, song, scale, shift)
        else:
            shared = zip(shifts.unbind(), scales.unbind(), song.keys, song.values, strict=True)
            for layer, inputs in zip(self.layers, shared, strict=True):
                hidden = layer(hidden, *inputs, song.rotary, song.attention)
            hidden = torch.addcmul(shift, _unit(hidden, self.model.norm_out.eps), scale)
        made = F.linear(hidden, self._out_weight, self._out_bias)
        return torch.unflatten(made, 2, (self.patch, -1)).flatten(1, 2)[:, :frames]

    def _fused(
        self,
        hidden: torch.Tensor,
        shifts: torch.Tensor,
        scales: torch.Tensor,
        song: SongInputs,
        last_scale: torch.Tensor,
        last_shift: torch.Tensor,
    ) -> torch.Tensor:
        """All layers and the norm after them, by kernels of our own; `hidden` is spent.

        A layer's last sum is left to the norm that follows it, in the next layer.
        """
        kernels, attention = self._kernels, song.attention
        branch = gate = None
        shared = zip(shifts.unbind(), scales.unbind(), song.keys, song.values, strict=True)
        for layer, (shift_rows, scale_rows, key, value) in zip(self.layers, shared, strict=True):
            block, turned_heads = layer.layer, layer.heads + layer.kv_heads
            shift, _, own_gate, mlp_shift, _, mlp_gate = shift_rows.unbind()
            scale, mlp_scale = scale_rows.unbind()
            eps = block.self_attn_norm.eps
            normed = kernels.add_and_norm(hidden, branch, gate, eps, scale, shift)
            joined = layer.project(normed).unflatten(-1, (-1, layer.head_dim))
            turned = kernels.turn(
                joined[:, :, :turned_heads], layer.norm, layer.own.norm_q.eps, song.rotary
            )
            attend = attention.windowed if layer.windowed else attention.full
            query, own_key = turned[:, :, : layer.heads], turned[:, :, layer.heads :]
            heard = layer.own.to_out[0](attend(query, own_key, joined[:, :, turned_heads:]))
            norm = block.cross_attn_norm
            normed = kernels.add_and_norm(hidden, heard, own_gate, norm.eps, norm.weight, None)
            query = layer.cross.to_q(normed).unflatten(-1, (-1, layer.head_dim))
            query = kernels.turn(query, layer.cross_norm, layer.cross.norm_q.eps, None)
            heard = layer.cross.to_out[0](attention.cross(query, key, value))
            eps = block.mlp_norm.eps
            normed = kernels.add_and_norm(hidden, heard, None, eps, mlp_scale, mlp_shift)
            branch, gate = block.mlp.down_proj(kernels.gated(layer.widen(normed))), mlp_gate
        eps = self.model.norm_out.eps
        fused: torch.Tensor = kernels.add_and_norm(
            hidden, branch, gate, eps, last_scale, last_shift
        )
        return fused

    def _patched(self, latents: torch.Tensor) -> torch.Tensor:
        rest = -latents.shape[1] % self.patch
        if rest:
            latents = F.pad(latents, (0, 0, 0, rest))
        return torch.unflatten(latents, 1, (-1, self.patch)).flatten(2)


class _Layer:
    """One block of the transformer: attention, attention to the condition, MLP."""

    def __init__(self, layer: Any) -> None:
        own, cross = layer.self_attn, layer.cross_attn
        self.own, self.cross, self.layer = own, cross, layer
        self.heads, self.kv_heads, self.head_dim = own.heads, own.kv_heads, own.head_dim
        self.windowed = own.sliding_window is not None
        self.project = _joined(own.to_q, own.to_k, own.to_v)
        self.widen = _joined(layer.mlp.gate_proj, layer.mlp.up_proj)
        weights = [own.norm_q.weight] * own.heads + [own.norm_k.weight] * own.kv_heads
        self.norm = torch.stack(weights)
        self.cross_norm = torch.stack([cross.norm_q.weight] * own.heads)
        self.compiled: Any = None

    def condition(self, embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[batch, tokens, kv_heads, head_dim]` of the condition."""
        shape = (self.kv_heads, self.head_dim)
        key = _normed(self.cross.to_k(embedded).unflatten(-1, shape), self.cross.norm_k)
        return key, self.cross.to_v(embedded).unflatten(-1, shape)

    def __call__(self, *inputs: Any) -> torch.Tensor:
        made: torch.Tensor = (self.compiled or _run_layer)(self, *inputs)
        return made


def _run_layer(
    layer: _Layer,
    hidden: torch.Tensor,
    shifts: torch.Tensor,
    scales: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    attention: Attention,
) -> torch.Tensor:
    heads, kv_heads = layer.heads, layer.kv_heads
    block = layer.layer
    shift, _, gate, mlp_shift, _, mlp_gate = shifts.unbind()
    scale, mlp_scale = scales.unbind()
    normed = torch.addcmul(shift, _unit(hidden, block.self_attn_norm.eps), scale)
    joined = layer.project(normed).unflatten(-1, (heads + 2 * kv_heads, layer.head_dim))
    turned = _rotated(joined[:, :, : heads + kv_heads], layer.norm, layer.own.norm_q.eps, rotary)
    attend = attention.windowed if layer.windowed else attention.full
    heard = attend(turned[:, :, :heads], turned[:, :, heads:], joined[:, :, heads + kv_heads :])
    hidden = torch.addcmul(hidden, layer.own.to_out[0](heard), gate)

    query = layer.cross.to_q(_normed(hidden, block.cross_attn_norm))
    query = _normed(query.unflatten(-1, (heads, layer.head_dim)), layer.cross.norm_q)
    hidden = hidden + layer.cross.to_out[0](attention.cross(query, key, value))

    normed = torch.addcmul(mlp_shift, _unit(hidden, block.mlp_norm.eps), mlp_scale)
    opened, up = layer.widen(normed).chunk(2, dim=-1)
    return torch.addcmul(hidden, block.mlp.down_proj(F.silu(opened) * up), mlp_gate)


def _rotated(
    heads: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    rotary: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Queries and keys normalised and turned by their positions, all heads at once."""
    cos, sin = rotary
    normed = _unit(heads, eps) * weight
    swapped = torch.unflatten(normed, -1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(normed * cos, swapped, sin)


def _unit(hidden: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:], None, eps)


def _normed(hidden: torch.Tensor, norm: Any) -> torch.Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.eps)


def _joined(*linears: Any) -> Any:
    """One product in place of several over the same input.

    Plain layers share one weight from here on, as views of it; anything else, such as a layer
    with an adapter, is called on its own.
    """
    if quantised.are_alike(*linears):
        return quantised.joined(*linears)
    if any(type(linear) is not nn.Linear or linear.bias is not None for linear in linears):
        return lambda hidden: torch.cat([linear(hidden) for linear in linears], dim=-1)
    weight = torch.cat([linear.weight for linear in linears])
    sizes = [linear.out_features for linear in linears]
    for linear, rows in zip(linears, torch.split(weight, sizes), strict=True):
        linear.weight.data = rows
    return lambda hidden: F.linear(hidden, weight)
