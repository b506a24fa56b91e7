"""Convolutions over time in pieces, for devices that limit the length of an output."""

from __future__ import annotations

import torch
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
        signal: `[batch, channels, time]`.
        weight: `[out_channels, channels / groups, kernel]`.
        limit: longest output of one call, or None for no limit.
    """
    length = signal.shape[-1]
    reach = dilation * (weight.shape[-1] - 1) + 1
    out_length = (length + 2 * padding - reach) // stride + 1
    if limit is None or out_length <= limit:
        return F.conv1d(signal, weight, bias, stride, padding, dilation, groups)
    shape = (signal.shape[0], weight.shape[0], out_length)
    result = torch.empty(shape, device=signal.device, dtype=signal.dtype)
    for first in range(0, out_length, limit):
        last = min(first + limit, out_length)
        start = first * stride - padding
        stop = (last - 1) * stride - padding + reach
        piece = signal[..., max(start, 0) : max(min(stop, length), 0)]
        left = min(max(-start, 0), stop - start)
        piece = F.pad(piece, (left, stop - start - left - piece.shape[-1]))
        result[..., first:last] = F.conv1d(piece, weight, bias, stride, 0, dilation, groups)
    return result
