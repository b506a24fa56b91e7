"""The VAE's decoder as Triton kernels, activations and sums included.

Between two convolutions of the decoder lie a bias, a sum and a Snake activation, each of
which reads and writes the whole signal. Here they are done on what a convolution has just
computed, before it leaves the registers. Signals are `[time, channels]`, contiguous; products
are the matrix units' in the signal's dtype, summed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional as F
from triton.tools.tensor_descriptor import TensorDescriptor

from acestep.vae.convolution import folded

# Kernels are compiled, or rewritten to be interpreted: coverage cannot see their lines run.

TILE = (128, 128, 64)
"""Times, output channels and input channels that a program works on at once. Of 27 choices
this was the quickest, or within 5 % of it, for every layer of the published VAE on an H200."""

_STAGES = 3
_NARROW = 16
"""Fewest columns of a product on the matrix units."""

# Interpreted kernels run on the host, which knows no instructions of a GPU.
_EXACT = bool(triton.knobs.runtime.interpret)
# A whole residual unit needs the registers of twice as many threads as one convolution.
_WARPS, _UNIT_WARPS = 4, 8


@triton.jit  # type: ignore[untyped-decorator]
def _snake(value, rates, width, channels, EXACT: tl.constexpr):  # type: ignore[no-untyped-def]  # pragma: no cover
    """`x + sin(a x)² / b` as `x + (1 - cos(2 a x)) / (2 b)`; `rates` are `2 a` and `1 / (2 b)`."""
    angle = value * tl.load(rates + channels)[None, :]
    if EXACT:
        wave = tl.cos(angle)
    else:
        # The hardware's own: off by 2^-20 at the angles met here, far below the dtype's rounding.
        wave = tl.inline_asm_elementwise(
            "cos.approx.ftz.f32 $0, $1;", "=f,f", [angle], tl.float32, is_pure=True, pack=1
        )
    return value + (1.0 - wave) * tl.load(rates + width + channels)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _convolve(  # type: ignore[no-untyped-def]  # pragma: no cover
    signal, weight, bias, rates, residual, raw, active, dilation, first, second,
    IN: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr,
    ADD: tl.constexpr, KEEP: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of a convolution, of what is added to it, and of the activation that follows."""
    columns: tl.constexpr = OUT // BLOCK_N
    tile = tl.program_id(0)
    time, column = (tile // columns) * BLOCK_T, (tile % columns) * BLOCK_N
    channels = column + tl.arange(0, BLOCK_N)
    begin = time + tl.where(column < OUT // 2, first, second)
    total = tl.full((BLOCK_T, BLOCK_N), 0.0, tl.float32)
    for step in range(TAPS * IN // BLOCK_K):
        tap, part = step // (IN // BLOCK_K), step % (IN // BLOCK_K)
        # Before the signal's start and after its end a descriptor gives zeros: the padding.
        heard = signal.load([begin + tap * dilation, part * BLOCK_K])
        total = tl.dot(heard, weight.load([step * BLOCK_K, column]), total)
    total += tl.load(bias + channels)[None, :]
    if ADD:
        total += residual.load([time, column]).to(tl.float32)
    if KEEP:
        raw.store([time, column], total.to(raw.dtype))
    made = _snake(total, rates, OUT, channels, EXACT)
    active.store([time, column], made.to(active.dtype))


@triton.jit  # type: ignore[untyped-decorator]
def _residual_unit(  # type: ignore[no-untyped-def]  # pragma: no cover
    signal, wide, wide_bias, wide_rates, narrow, bias, rates, residual, raw, active,
    dilation, first,
    WIDTH: tl.constexpr, TAPS: tl.constexpr, KEEP: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A stretch of a residual unit with all its channels: both convolutions in one go."""
    time = tl.program_id(0) * BLOCK_T
    channels = tl.arange(0, WIDTH)
    total = tl.full((BLOCK_T, WIDTH), 0.0, tl.float32)
    for step in range(TAPS * WIDTH // BLOCK_K):
        tap, part = step // (WIDTH // BLOCK_K), step % (WIDTH // BLOCK_K)
        heard = signal.load([time + first + tap * dilation, part * BLOCK_K])
        total = tl.dot(heard, wide.load([step * BLOCK_K, 0]), total)
    total += tl.load(wide_bias + channels)[None, :]
    inner = _snake(total, wide_rates, WIDTH, channels, EXACT).to(signal.dtype)
    total = tl.dot(inner, narrow.load([0, 0])) + tl.load(bias + channels)[None, :]
    total += residual.load([time, 0]).to(tl.float32)
    if KEEP:
        raw.store([time, 0], total.to(raw.dtype))
    made = _snake(total, rates, WIDTH, channels, EXACT)
    active.store([time, 0], made.to(active.dtype))


@dataclass(frozen=True)
class _Convolution:
    """A convolution, plain or transposed, as a product over shifted rows of the signal.

    Attributes:
        weight: `[taps * inputs, outputs]`.
        bias: `[outputs]`, float32.
        rates: of the activation that follows, `[2, outputs]`, float32; see `_snake`.
        dilation: distance of the rows that meet in one output.
        first, second: where the first of them lies from the output, for each half of the
            outputs: the halves of a transposed convolution's phases look different ways.
        phases: outputs in time for each input.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    rates: torch.Tensor
    dilation: int
    first: int
    second: int
    phases: int = 1

    @classmethod
    def plain(cls, module: Any, snake: Any) -> _Convolution:
        weight = folded(module).permute(2, 1, 0).flatten(0, 1).contiguous()
        shift = -module.padding[0]
        return cls(weight, _bias(module), _rates(snake), module.dilation[0], shift, shift)

    @classmethod
    def transposed(cls, module: Any, snake: Any) -> _Convolution:
        """From `[time, inputs]` to `[time, stride * outputs]`, in memory `[stride * time, outputs]`.

        The output at phase `r` of an input hears that input through tap `r + padding`, and one
        neighbour: in the first half of the phases the input before, through the tap a stride
        further on, in the second half the input after, through the tap a stride back.
        """
        stride, padding = module.stride[0], module.padding[0]
        weight = folded(module).permute(2, 0, 1)
        own, half = weight[padding : padding + stride], stride - padding
        taps = [
            torch.cat([weight[padding + stride :], own[half:]]),
            torch.cat([own[:half], weight[:padding]]),
        ]
        rows = [tap.movedim(0, 1).flatten(1) for tap in taps]
        bias, rates = _bias(module).repeat(stride), _rates(snake).repeat(1, stride)
        return cls(torch.cat(rows).contiguous(), bias, rates, 1, -1, 0, stride)

    @classmethod
    def last(cls, module: Any) -> _Convolution:
        """Without an activation: its rates are zero. Columns of zeros make it wide enough."""
        weight = folded(module).permute(2, 1, 0).flatten(0, 1)
        spare = _NARROW - weight.shape[1]
        bias, shift = F.pad(_bias(module), (0, spare)), -module.padding[0]
        rates = torch.zeros(2, _NARROW, device=bias.device)
        weight = F.pad(weight, (0, spare)).contiguous()
        return cls(weight, bias, rates, module.dilation[0], shift, shift)

    def __call__(
        self,
        signal: torch.Tensor,
        residual: torch.Tensor | None = None,
        *,
        keep: bool = False,
        tile: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of convolution, bias and residual, in the residual's place, and its activation.

        Without `keep` the sum is not written anywhere, and the first result means nothing.
        """
        length, inputs = signal.shape
        outputs = len(self.bias)
        active = signal.new_empty(length, outputs, dtype=dtype)
        raw = torch.empty_like(active) if keep and residual is None else active
        if residual is not None:
            raw = residual
        times, columns, parts = tile
        columns = min(columns, outputs)
        place = [times, columns]
        _convolve[(triton.cdiv(length, times) * (outputs // columns),)](
            TensorDescriptor.from_tensor(signal, [times, parts]),
            TensorDescriptor.from_tensor(self.weight, [parts, columns]),
            self.bias, self.rates,
            *(TensorDescriptor.from_tensor(rows, place) for rows in (raw, raw, active)),
            self.dilation, self.first, self.second,
            inputs, outputs, len(self.weight) // inputs,
            residual is not None, keep, _EXACT, times, columns, parts,
            num_warps=_WARPS, num_stages=_STAGES,
        )  # fmt: skip
        shape = length * self.phases, outputs // self.phases
        return raw.view(shape), active.view(shape)


class _Unit:
    """A residual unit: a dilated convolution and one of width 1, each with its activation."""

    def __init__(self, unit: Any, following: Any) -> None:
        self.wide = _Convolution.plain(unit.conv1, unit.snake2)
        self.narrow = _Convolution.plain(unit.conv2, following)

    def __call__(
        self, raw: torch.Tensor, active: torch.Tensor, *, keep: bool, tile: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        times, columns, parts = tile
        length, width = active.shape
        if width != columns:
            return self.narrow(self.wide(active, tile=tile)[1], raw, keep=keep, tile=tile)
        wide, narrow, made = self.wide, self.narrow, torch.empty_like(active)
        place = [times, width]
        _residual_unit[(triton.cdiv(length, times),)](
            TensorDescriptor.from_tensor(active, [times, parts]),
            TensorDescriptor.from_tensor(wide.weight, [parts, width]), wide.bias, wide.rates,
            TensorDescriptor.from_tensor(narrow.weight, [width, width]), narrow.bias, narrow.rates,
            *(TensorDescriptor.from_tensor(rows, place) for rows in (raw, raw, made)),
            wide.dilation, wide.first,
            width, len(wide.weight) // width, keep, _EXACT, times, parts,
            num_warps=_UNIT_WARPS, num_stages=_STAGES,
        )  # fmt: skip
        return raw, made


class TiledDecoder:
    """Latents to waveforms with the weights of a `diffusers` `OobleckDecoder`, as `WaveDecoder`.

    Args:
        decoder: a module that `fits`; its weights are copied.
        tile: by default `TILE`.
    """

    def __init__(self, decoder: Any, tile: Sequence[int] | None = None) -> None:
        self._tile = tile or TILE
        blocks = list(decoder.block)
        followers = [*(block.snake1 for block in blocks[1:]), decoder.snake1]
        self._first = _Convolution.plain(decoder.conv1, blocks[0].snake1)
        self._blocks = []
        for block, follower in zip(blocks, followers, strict=True):
            units = [block.res_unit1, block.res_unit2, block.res_unit3]
            snakes = [*(unit.snake1 for unit in units), follower]
            widen = _Convolution.transposed(block.conv_t1, snakes[0])
            pairs = zip(units, snakes[1:], strict=True)
            self._blocks.append((widen, [_Unit(unit, snake) for unit, snake in pairs]))
        self._last = _Convolution.last(decoder.conv2)
        self._audible = decoder.conv2.out_channels

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, frames]` to float32 `[batch, 2, samples]`."""
        # A copy in any case: one frame counts as contiguous whatever its strides.
        songs = [item.T.clone(memory_format=torch.contiguous_format) for item in latents]
        # Triton launches on the current device, which need not be the tensors'.
        with torch.accelerator.device_index(latents.device.index):
            return torch.stack([self._song(song).T for song in songs])

    def _song(self, latents: torch.Tensor) -> torch.Tensor:
        _, active = self._first(latents, tile=self._tile)
        for widen, units in self._blocks:
            raw, active = widen(active, keep=True, tile=self._tile)
            for unit in units:
                raw, active = unit(raw, active, keep=unit is not units[-1], tile=self._tile)
        _, audio = self._last(active, tile=self._tile, dtype=torch.float32)
        return audio[:, : self._audible]


def fits(decoder: Any, tile: Sequence[int] | None = None) -> bool:
    """Whether a decoder's widths divide into tiles, and its strides into halves."""
    _, columns, parts = tile or TILE
    first, last = decoder.conv1, decoder.conv2
    if first.in_channels % parts or first.out_channels % columns or last.out_channels > _NARROW:
        return False
    for block in decoder.block:
        widen = block.conv_t1
        (stride,), (padding,), (kernel,) = widen.stride, widen.padding, widen.kernel_size
        if kernel != 2 * stride or 2 * padding != stride or widen.output_padding[0]:
            return False
        if widen.out_channels % columns or widen.in_channels % parts:
            return False
    return True


def _rates(snake: Any) -> torch.Tensor:
    alpha, beta = snake.alpha.detach().flatten().float(), snake.beta.detach().flatten().float()
    if snake.logscale:
        alpha, beta = alpha.exp(), beta.exp()
    return torch.stack([2 * alpha, 0.5 / (beta + 1e-9)])


def _bias(module: Any) -> torch.Tensor:
    if module.bias is None:
        return torch.zeros(module.out_channels, device=folded(module).device)
    bias: torch.Tensor = module.bias.detach().float()
    return bias
