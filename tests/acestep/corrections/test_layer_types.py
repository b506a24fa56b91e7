"""Tests of windows in diffusers' encoders, against attention written out."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepTimbreEncoder
from torch.nn import functional as F

from acestep.corrections.layer_types import set_layer_types, stacks

WIDTH, HEADS, KV_HEADS, HEAD_DIM, WINDOW, TOKENS = 16, 4, 2, 8, 2, 9


def turned(rows: torch.Tensor) -> torch.Tensor:
    """Rotary positions, `[heads, tokens, head_dim]`, halves turned against each other."""
    half = HEAD_DIM // 2
    frequencies = 10000.0 ** (-torch.arange(half) / half)
    angles = torch.arange(rows.shape[1])[:, None] * frequencies
    first, second = rows[..., :half], rows[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def attended(attention: torch.nn.Module, hidden: torch.Tensor, window: int | None) -> torch.Tensor:
    """Attention over `[tokens, width]`, a head and a token at a time."""

    def heads(linear: torch.nn.Module, count: int) -> torch.Tensor:
        return linear(hidden).view(TOKENS, count, HEAD_DIM).transpose(0, 1)

    query = turned(attention.norm_q(heads(attention.to_q, HEADS)))
    key = turned(attention.norm_k(heads(attention.to_k, KV_HEADS)))
    value = heads(attention.to_v, KV_HEADS)
    made = torch.zeros(TOKENS, HEADS, HEAD_DIM)
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        for token in range(TOKENS):
            near = [t for t in range(TOKENS) if window is None or abs(t - token) <= window]
            scores = key[shared, near] @ query[head, token] / HEAD_DIM**0.5
            made[token, head] = scores.softmax(0) @ value[shared, near]
    return attention.to_out[0](made.flatten(1))


def by_hand(encoder: AceStepTimbreEncoder, frames: torch.Tensor, kinds: list[str]) -> torch.Tensor:
    hidden = encoder.embed_tokens(frames)
    for layer, kind in zip(encoder.layers, kinds, strict=True):
        window = WINDOW if kind == "sliding_attention" else None
        hidden = hidden + attended(layer.self_attn, layer.input_layernorm(hidden), window)
        normed, mlp = layer.post_attention_layernorm(hidden), layer.mlp
        hidden = hidden + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return encoder.norm(hidden)[0]


@pytest.mark.parametrize(
    "kinds",
    [
        ["sliding_attention", "full_attention"],
        ["full_attention", "sliding_attention"],
        ["sliding_attention", "sliding_attention"],
        ["full_attention", "full_attention"],
    ],
)
def test_the_timbre_encoder_follows_its_list(kinds: list[str]) -> None:
    torch.manual_seed(0)
    encoder = AceStepTimbreEncoder(
        hidden_size=WIDTH,
        intermediate_size=24,
        timbre_hidden_dim=5,
        num_timbre_encoder_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rope_theta=10000.0,
        sliding_window=WINDOW,
    ).eval()
    set_layer_types(encoder, lambda count: kinds[:count], WINDOW)
    frames = torch.randn(1, TOKENS, 5)
    with torch.no_grad():
        made, _ = encoder(frames, torch.zeros(1, dtype=torch.long))
        expected = by_hand(encoder, frames[0], kinds)
    torch.testing.assert_close(made[0, 0], expected, rtol=0, atol=1e-5)
    assert len(stacks(encoder)) == 1
