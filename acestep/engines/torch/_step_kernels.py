"""What lies between the products and the attention of the transformer, as Triton kernels.

A row of a layer's activations is read and written once for a sum, a norm and its scale and
shift; once for the norm and the rotation of queries and keys; once for the gated activation.
Arithmetic is float32, inputs and outputs have the model's dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Kernels are compiled, or rewritten to be interpreted: coverage cannot see their lines run.

_HEADS = 8
"""Heads of a token that one program turns."""

_GATED = 1024
"""Channels of a gated activation that one program computes."""


@triton.jit  # type: ignore[untyped-decorator]
def _add_and_norm(  # type: ignore[no-untyped-def]  # pragma: no cover
    hidden, branch, gate, scale, shift, normed, eps,
    WIDTH: tl.constexpr, ADD: tl.constexpr, GATE: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: `hidden += branch * gate` in place, then its norm times `scale` plus `shift`."""
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + columns
    row = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
        if GATE:
            added *= tl.load(gate + columns, mask=inside, other=0.0).to(tl.float32)
        kept = (row + added).to(hidden.dtype.element_ty)
        tl.store(hidden + place, kept, mask=inside)
        row = kept.to(tl.float32)
    made = row * tl.rsqrt(tl.reduce(row * row, 0, _plus) / WIDTH + eps)
    made *= tl.load(scale + columns, mask=inside, other=0.0).to(tl.float32)
    if SHIFT:
        made += tl.load(shift + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, made.to(normed.dtype.element_ty), mask=inside)


# In place of `tl.sum`, which is a kernel of Triton's own: the interpreter takes only ours.
@triton.jit
def _plus(left, right):  # type: ignore[no-untyped-def]  # pragma: no cover
    return left + right


@triton.jit  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]  # pragma: no cover
    heads, weight, cosines, sines, turned, tokens, stride, count, eps,
    DIM: tl.constexpr, ROTATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some heads of one token: normed, weighted, and turned by the token's position."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    half = tl.arange(0, DIM // 2)
    inside = (head < count)[:, None]
    place = head[:, None] * DIM + half[None, :]
    first = tl.load(heads + token * stride + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(heads + token * stride + place + DIM // 2, mask=inside, other=0.0)
    second = second.to(tl.float32)
    power = tl.reduce(first * first + second * second, 1, _plus) / DIM
    root = tl.rsqrt(power + eps)[:, None]
    first *= root * tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    second *= root * tl.load(weight + place + DIM // 2, mask=inside, other=0.0).to(tl.float32)
    if ROTATE:
        at = (token % tokens) * DIM + half
        cosine = tl.load(cosines + at).to(tl.float32)[None, :]
        # The table's first half has the sign of the first half's rotation.
        sine = tl.load(sines + at + DIM // 2).to(tl.float32)[None, :]
        first, second = first * cosine - second * sine, second * cosine + first * sine
    into = turned + token * count * DIM + place
    tl.store(into, first.to(turned.dtype.element_ty), mask=inside)
    tl.store(into + DIM // 2, second.to(turned.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gate(opened, made, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
    """A stretch of one row: the activation of its first half times its second half."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gate = tl.load(opened + row * 2 * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(opened + row * 2 * WIDTH + WIDTH + columns, mask=inside, other=0.0)
    value = gate / (1.0 + tl.exp(-gate)) * up.to(tl.float32)
    tl.store(made + row * WIDTH + columns, value.to(made.dtype.element_ty), mask=inside)


def add_and_norm(
    hidden: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor | None,
    eps: float,
    scale: torch.Tensor,
    shift: torch.Tensor | None,
) -> torch.Tensor:
    """Add a branch to `hidden` in place, and return its norm, scaled and shifted.

    Args:
        hidden: `[batch, tokens, width]`, contiguous.
        branch: likewise, or None.
        gate: `[width]`, or None for 1.
        eps: of the norm.
        scale, shift: `[width]`; no shift is none.
    """
    width = hidden.shape[-1]
    normed = torch.empty_like(hidden)
    _add_and_norm[(hidden.numel() // width,)](
        hidden, hidden if branch is None else branch, scale if gate is None else gate,
        scale, scale if shift is None else shift, normed, eps,
        width, branch is not None, gate is not None, shift is not None,
        triton.next_power_of_2(width),
    )  # fmt: skip
    return normed


def turn(
    heads: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    rotary: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Queries or keys normed, weighted, and turned by their positions.

    Args:
        heads: `[batch, tokens, heads, head_dim]`; tokens may lie apart, heads must not.
        weight: `[heads, head_dim]`.
        eps: of the norm.
        rotary: cosines and signed sines `[tokens, 1, head_dim]`, or None not to turn.
    """
    batch, tokens, count, dim = heads.shape
    turned = heads.new_empty(heads.shape)
    cosines, sines = rotary or (weight, weight)
    _turn[(batch * tokens, triton.cdiv(count, _HEADS))](
        heads, weight, cosines, sines, turned, tokens, heads.stride(1), count, eps,
        dim, rotary is not None, _HEADS,
    )  # fmt: skip
    return turned


def gated(opened: torch.Tensor) -> torch.Tensor:
    """`silu(first half) * second half` of `[batch, tokens, 2 * width]`."""
    *shape, double = opened.shape
    made = opened.new_empty(*shape, double // 2)
    rows = opened.numel() // double
    _gate[(rows, triton.cdiv(double // 2, _GATED))](opened, made, double // 2, _GATED)
    return made
