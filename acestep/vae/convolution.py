"""Convolutions over time in pieces, for devices that limit the length of an output."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def conv1d(
    signal: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    limit: int | None = None,
) -> torch.Tensor:
    """`torch.nn.functional.conv1d`, of which no single call gives more than `limit` samples.

    Longer outputs are computed piece by piece, each from exactly the input it needs.

    Args:
        signal: `[batch, channels, time]`, or `[batch, channels, 1, time]` as an image of one row.
        weight: `[out_channels, channels / groups, kernel]`, or with the row's dimension likewise.
        limit: longest output of one call, or None for no limit.
    """

    def whole(part: torch.Tensor, pad: int) -> torch.Tensor:
        if part.ndim == 3:
            return F.conv1d(part, weight, bias, stride, pad, dilation, groups)
        return F.conv2d(part, weight, bias, (1, stride), (0, pad), (1, dilation), groups)

    length = signal.shape[-1]
    reach = dilation * (weight.shape[-1] - 1) + 1
    out_length = (length + 2 * padding - reach) // stride + 1
    if limit is None or out_length <= limit:
        return whole(signal, padding)
    # Of equal length: on the host a short rest would run on another kernel, and round otherwise.
    core = -(-out_length // -(-out_length // limit))
    result: torch.Tensor | None = None
    for first in range(0, out_length, core):
        last = min(first + core, out_length)
        start = first * stride - padding
        stop = (last - 1) * stride - padding + reach
        piece = signal[..., max(start, 0) : max(min(stop, length), 0)]
        left = min(max(-start, 0), stop - start)
        piece = whole(F.pad(piece, (left, stop - start - left - piece.shape[-1])), 0)
        if result is None:
            layout = torch.contiguous_format
            if piece.ndim == 4 and piece.is_contiguous(memory_format=torch.channels_last):
                layout = torch.channels_last
            shape = (*piece.shape[:-1], out_length)
            result = torch.empty(
                shape, dtype=piece.dtype, device=piece.device, memory_format=layout
            )
        result[..., first:last] = piece
    assert result is not None
    return result


def folded(convolution: nn.Module) -> torch.Tensor:
    """The weight of a convolution, with its normalisation applied once and for all."""
    direction: torch.Tensor | None = getattr(convolution, "weight_v", None)
    if direction is None:
        plain: torch.Tensor = convolution.get_parameter("weight").detach()
        return plain
    gain: torch.Tensor = convolution.get_parameter("weight_g").detach().float()
    wide = direction.detach().float()
    length = torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True)
    weight: torch.Tensor = (wide * (gain / length)).to(direction.dtype)
    return weight


def padding_of(convolution: Any) -> int:
    if isinstance(convolution.padding, str):
        raise TypeError(f"padding {convolution.padding!r} is given by name; a number is needed")
    return int(convolution.padding[0])
