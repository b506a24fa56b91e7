"""The layers of the VAE with their weights folded, channels last and activations in place.

diffusers' modules compute the normalised weights again in every call, and each Snake
activation as five tensors. PyTorch's convolutions over narrow signals, too, are several times
as fast on the CPU when the channels of a sample lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from acestep.vae.convolution import conv1d, folded
from acestep.vae.windows import windows

Signal = Callable[[torch.Tensor], torch.Tensor]


class WaveLayers:
    """Makes functions of diffusers' Oobleck modules, and runs those in `_layers` in turn.

    Args:
        limit: longest output of a convolution, or None.
        channels_last: signals are images of one row whose channels lie side by side, in place
            of `[batch, channels, time]`.
    """

    def __init__(self, limit: int | None, channels_last: bool) -> None:
        self._flat, self._limit = not channels_last, limit
        self._layers: list[Signal] = []

    def __call__(self, signal: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, time]` in and out."""
        if not self._flat:
            signal = signal[:, :, None].contiguous(memory_format=torch.channels_last)
        for layer in self._layers:
            signal = layer(signal)
        return signal if self._flat else signal[:, :, 0]

    def _residual(self, unit: Any) -> Signal:
        first, second = self._snake(unit.snake1), self._snake(unit.snake2)
        wide, narrow = self._convolution(unit.conv1), self._convolution(unit.conv2)
        return lambda signal: narrow(second(wide(first(signal)))).add_(signal)

    def _rates(self, snake: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """`a` and the root of `1 / b` of `x + sin(a x)² / b`."""
        alpha, beta = self._shaped(snake.alpha), self._shaped(snake.beta)
        if snake.logscale:
            alpha, beta = alpha.exp(), beta.exp()
        return alpha, (beta + 1e-9).rsqrt()

    def _shaped(self, channels: torch.Tensor) -> torch.Tensor:
        """One value a channel, in the shape that meets a signal's channels."""
        return channels.detach().view((1, -1, 1) if self._flat else (1, -1, 1, 1))

    def _snake(self, snake: Any) -> Signal:
        """`x + sin(a x)² / b`; the factor `1 / b` goes in as a root, before the squaring."""
        alpha, root = self._rates(snake)

        def run(signal: torch.Tensor) -> torch.Tensor:
            wave = (signal * alpha).sin_().mul_(root)
            torch.addcmul(signal, wave, wave, out=wave)
            return wave

        return run

    def _convolution(self, module: Any, biased: bool = True) -> Signal:
        weight, bias = folded(module), module.bias if biased else None
        stride, padding, dilation = module.stride[0], module.padding[0], module.dilation[0]
        if not self._flat:
            weight = self._image(weight)
        return lambda signal: conv1d(
            signal,
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            limit=self._limit,
        )

    def _transposed(self, module: Any, biased: bool = True) -> Signal:
        weight, bias = folded(module), module.bias if biased else None
        stride, padding = module.stride[0], module.padding[0]
        if self._flat:
            return lambda signal: F.conv_transpose1d(signal, weight, bias, stride, padding)
        weight = self._image(weight)
        return lambda signal: F.conv_transpose2d(signal, weight, bias, (1, stride), (0, padding))

    def _phased(self, module: Any) -> Signal:
        """A transposed convolution whose kernel is two strides long, as a plain one.

        Each sample and the one before it make a stride of samples, which lie side by side as
        channels do: nothing has to be moved.
        """
        (stride,), (padding,) = module.stride, module.padding
        taps = folded(module)
        inputs, outputs, _ = taps.shape
        taps = taps.view(inputs, outputs, 2, stride).flip(2).permute(3, 1, 0, 2)
        weight = self._image(taps.reshape(stride * outputs, inputs, 2))
        bias = module.bias.detach().repeat(stride)

        def run(signal: torch.Tensor) -> torch.Tensor:
            made = F.conv2d(signal, weight, bias, 1, (0, 1)).permute(0, 2, 3, 1)
            made = made.reshape(len(made), 1, -1, outputs).permute(0, 3, 1, 2)
            return made[..., padding : made.shape[-1] - padding]

        return run

    def _image(self, weight: torch.Tensor) -> torch.Tensor:
        return weight[:, :, None].contiguous(memory_format=torch.channels_last)


def in_pieces(layers: Sequence[Signal], core: int, halo: int, ratio: int) -> Signal:
    """The layers as one, each piece of a signal through all of them before the next one.

    What a piece takes then stays in the processor's cache, and in memory that it has already.

    Args:
        layers: of signals `[1, channels, 1, time]` whose channels lie side by side.
        core: most samples of a piece, its halo not counted.
        halo: samples on each side that a sample of the result depends on.
        ratio: samples that are made of one.
    """

    def through(signal: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            signal = layer(signal)
        return signal

    def run(signal: torch.Tensor) -> torch.Tensor:
        samples, made = signal.shape[-1], None
        if samples <= core + 2 * halo:
            return through(signal)
        for at in windows(samples, -(-samples // -(-samples // core)), halo):
            part = through(signal[..., at.start : at.stop])
            if made is None:
                # An odd ratio makes a little less of a signal than its length times the ratio.
                length = samples * ratio - ((at.stop - at.start) * ratio - part.shape[-1])
                made = part.new_empty((*part.shape[:-1], length)).contiguous(
                    memory_format=torch.channels_last
                )
            target = made[..., at.first * ratio : at.last * ratio]
            first = (at.first - at.start) * ratio
            target.copy_(part[..., first : first + target.shape[-1]])
        assert made is not None
        return made

    return run


def units_of(block: Any) -> tuple[Any, Any, Any]:
    """The residual units of a block, in order."""
    return block.res_unit1, block.res_unit2, block.res_unit3
