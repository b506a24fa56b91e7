"""Attention maps made ready for time warping, on whatever device they lie.

Everything runs in float32 where the tensors are, and one small matrix is brought to the
host. What is left to the host is done in float64, which not every device has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acestep.errors import RequestError

Heads = Mapping[int, Sequence[int]] | Mapping[str, Sequence[int]]
Array = torch.Tensor | NDArray[Any]

FLAT_RANGE = 1e-9
STD_FLOOR = 1e-9

# Added to values of at most 1 to put them above all others; a where() takes twice as long.
_OUT_OF_THE_WAY = 4.0


def energy_map(attention: Array, heads: Heads, medfilt_width: int = 1) -> NDArray[np.float32]:
    """The mean of the chosen heads, filtered along time and stretched to [0, 1].

    The heads are added one by one in their order, so that every device gets the same bits.

    Args:
        attention: `[layers, heads, tokens, frames]`, any float dtype, any device.
        heads: layer to heads; those that do not exist are skipped.
        medfilt_width: see `median_filter`.

    Returns:
        `[tokens, frames]`; all zeros if the map is flat (range at most 1e-9).

    Raises:
        RequestError: wrong shape, no head exists, even width, or NaN or infinity inside.
    """
    chosen = _selected(attention, heads)
    total = torch.zeros_like(chosen[0], dtype=torch.float32)
    for head in chosen:
        total += head.float()
    mean: NDArray[np.float32] = to_host(median_filter(total, medfilt_width))
    mean = mean / np.float32(len(chosen))
    low, high = mean.min(), mean.max()
    if not np.isfinite(high - low):
        raise RequestError(_NOT_FINITE)
    if high - low <= FLAT_RANGE:
        return np.zeros_like(mean)
    mean -= low
    mean /= high - low
    return mean


def contrast_map(
    attention: Array, heads: Heads, violence_level: float = 2.0, medfilt_width: int = 1
) -> NDArray[np.float64]:
    """What stands out of the chosen heads, along both tokens and frames, as a z-score.

    A head's softmax over frames times its softmax over tokens, less `violence_level` times
    the median of each row and then of each column, never below zero, squared. The z-score
    is taken over all heads together; being increasing and affine it may be applied after
    the median filter and the mean over heads, so only sums leave the device. Once a head the
    host waits to learn how many columns have a median other than zero.

    Args:
        attention: `[layers, heads, tokens, frames]`, any float dtype, any device.
        heads: layer to heads; those that do not exist are skipped.
        violence_level: how many medians are taken away.
        medfilt_width: see `median_filter`.

    Returns:
        `[tokens, frames]`.

    Raises:
        RequestError: wrong shape, no head exists, even width, or NaN or infinity inside.
    """
    chosen = _selected(attention, heads)
    total = torch.zeros_like(chosen[0], dtype=torch.float32)
    moments: list[torch.Tensor] = []
    for head in (one.float() for one in chosen):
        product = torch.softmax(head, -1) * torch.softmax(head, -2)
        product = torch.relu(product - violence_level * _row_median(product))
        product = torch.relu(product - violence_level * _column_median(product))
        squared = product * product
        mean = squared.mean(-1, keepdim=True)
        variance = (squared - mean).square().mean(-1)  # var_mean takes five times as long
        moments += [variance, mean[:, 0], head.mean(-1)]  # the last only to notice infinity
        total += median_filter(squared, medfilt_width)
    host = to_host(torch.cat([total, torch.stack(moments, dim=-1)], dim=-1)).astype(np.float64)
    if not np.isfinite(host).all():
        raise RequestError(_NOT_FINITE)
    frames = total.shape[-1]
    variances, means = host[:, frames::3], host[:, frames + 1 :: 3]
    std = np.sqrt(variances.mean() + means.var())
    contrast: NDArray[np.float64] = host[:, :frames] / means.shape[1] - means.mean()
    contrast /= std + STD_FLOOR
    return contrast


def median_filter(values: torch.Tensor, width: int) -> torch.Tensor:
    """Median along the last dimension over windows of odd `width`, ends reflected.

    Left as it is when there are no more frames than `width // 2`. Done by comparing shifted
    copies: smallest and largest are dropped until the middle is left, which needs nothing
    of a device but minimum and maximum.

    Args:
        values: `[..., frames]`.
        width: window length in frames, odd.

    Raises:
        RequestError: the width is even or below one.
    """
    if width < 1 or width % 2 == 0:
        raise RequestError(f"medfilt_width must be odd and at least 1, got {width}")
    half, frames = width // 2, values.shape[-1]
    if width == 1 or frames <= half:
        return values
    left = values[..., 1 : half + 1].flip(-1)
    right = values[..., frames - half - 1 : frames - 1].flip(-1)
    padded = torch.cat([left, values, right], dim=-1)
    shifted = [padded[..., k : k + frames] for k in range(width)]
    pool = shifted[: half + 2]
    for following in [*shifted[half + 2 :], None]:
        for k in range(len(pool) - 1):  # the largest moves to the end
            pool[k], pool[k + 1] = pool[k].minimum(pool[k + 1]), pool[k].maximum(pool[k + 1])
        pool.pop()
        for k in range(len(pool) - 1, 0, -1):  # the smallest moves to the front
            pool[k - 1], pool[k] = pool[k - 1].minimum(pool[k]), pool[k - 1].maximum(pool[k])
        pool.pop(0)
        if following is not None:
            pool.append(following)
    return pool[0]


def to_host(values: Array) -> NDArray[Any]:
    """An array on the host; tensors of other devices are copied, bfloat16 becomes float32."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach()
    if values.dtype == torch.bfloat16:
        values = values.float()
    return values.cpu().numpy()


_NOT_FINITE = "the attention of the chosen heads holds NaN or infinity"


def _selected(attention: Array, heads: Heads) -> list[torch.Tensor]:
    """The chosen heads that exist, `[tokens, frames]` each, in the order given."""
    values = attention if isinstance(attention, torch.Tensor) else np.asarray(attention)
    shape = list(values.shape)
    if len(shape) != 4 or 0 in shape[2:]:
        raise RequestError(
            f"attention must have shape [layers, heads, tokens, frames] with at least one "
            f"token and one frame, got {shape}"
        )
    chosen = [
        (int(layer), int(head))
        for layer, members in heads.items()
        for head in members
        if 0 <= int(layer) < shape[0] and 0 <= int(head) < shape[1]
    ]
    if not chosen:
        asked = {int(layer): list(members) for layer, members in heads.items()}
        raise RequestError(
            f"none of the heads {asked} (layer: heads) exists in attention of shape {shape}, "
            f"[layers, heads, tokens, frames]"
        )
    if isinstance(values, torch.Tensor):
        return [values.detach()[layer, head] for layer, head in chosen]
    return [torch.from_numpy(np.array(values[at], dtype=np.float32)) for at in chosen]


def _row_median(values: torch.Tensor) -> torch.Tensor:
    """The 0.5 quantile, linearly interpolated, along the last dimension, which is kept.

    The values must be at most 1, as products of softmaxes are.
    """
    count = values.shape[-1]
    lower = values.median(-1, keepdim=True).values
    if count % 2:
        return lower
    # The other middle element: the same value again, or the least of those above it.
    below = values <= lower
    repeated = below.sum(-1, keepdim=True, dtype=torch.int32) > count // 2
    above = torch.add(values, below.to(values.dtype), alpha=_OUT_OF_THE_WAY)
    return torch.where(repeated, lower, (lower + above.amin(-1, keepdim=True)) / 2)


def _column_median(values: torch.Tensor) -> torch.Tensor:
    """Medians of the columns of values that are nowhere negative, `[1, columns]`.

    Most columns are mostly zero by then, and their median is known without looking.
    """
    rows = values.shape[0]
    positive = (values > 0).sum(0)
    columns = (positive >= rows - rows // 2).nonzero().squeeze(-1)
    medians = values.new_zeros(1, values.shape[1])
    if columns.numel():
        medians[0, columns] = _row_median(values[:, columns].T.contiguous()).squeeze(-1)
    return medians
