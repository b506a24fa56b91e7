"""The VAE's decoder with its weights folded, channels last and activations in place.

diffusers' modules compute the normalised weights again in every call, and each Snake
activation as five tensors. PyTorch's convolutions over narrow signals, too, are several times
as fast on the CPU when the channels of a sample lie side by side. The values are those of
`vae.decoder` up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F

from acestep.convolution import conv1d
from acestep.device import DevicePolicy
from acestep.offloading import bring

Signal = Callable[[torch.Tensor], torch.Tensor]


class WaveDecoder:
    """Latents to waveforms with the weights of a `diffusers` `OobleckDecoder`.

    Args:
        decoder: the module, on its device; its weights are copied.
        limit: longest output of a convolution, or None.
        channels_last: signals are images of one row whose channels lie side by side, in place
            of `[batch, channels, time]`.
    """

    def __init__(
        self, decoder: Any, limit: int | None = None, *, channels_last: bool = True
    ) -> None:
        self._flat, self._limit = not channels_last, limit
        self._layers: list[Signal] = [self._convolution(decoder.conv1)]
        for block in decoder.block:
            units = (block.res_unit1, block.res_unit2, block.res_unit3)
            self._layers += [self._snake(block.snake1), self._transposed(block.conv_t1)]
            self._layers += [self._residual(unit) for unit in units]
        self._layers += [self._snake(decoder.snake1), self._convolution(decoder.conv2)]

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, frames]` to `[batch, 2, samples]`."""
        signal = latents if self._flat else latents[:, :, None]
        if not self._flat:
            signal = signal.contiguous(memory_format=torch.channels_last)
        for layer in self._layers:
            signal = layer(signal)
        return signal if self._flat else signal[:, :, 0]

    def _residual(self, unit: Any) -> Signal:
        first, second = self._snake(unit.snake1), self._snake(unit.snake2)
        wide, narrow = self._convolution(unit.conv1), self._convolution(unit.conv2)
        return lambda signal: signal + narrow(second(wide(first(signal))))

    def _snake(self, snake: Any) -> Signal:
        """`x + sin(a x)² / b`; the factor `1 / b` goes in as a root, before the squaring."""
        shape = (1, -1, 1) if self._flat else (1, -1, 1, 1)
        alpha: torch.Tensor = snake.alpha.view(shape)
        beta: torch.Tensor = snake.beta.view(shape)
        if snake.logscale:
            alpha, beta = alpha.exp(), beta.exp()
        root = (beta + 1e-9).rsqrt()

        def run(signal: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_compiling():
                return signal + ((signal * alpha).sin() * root).square()
            wave = (signal * alpha).sin_().mul_(root)
            torch.addcmul(signal, wave, wave, out=wave)
            return wave

        return run

    def _convolution(self, module: Any) -> Signal:
        weight, bias = folded(module), module.bias
        padding, dilation = module.padding[0], module.dilation[0]
        if not self._flat:
            weight = self._image(weight)
        return lambda signal: conv1d(
            signal, weight, bias, padding=padding, dilation=dilation, limit=self._limit
        )

    def _transposed(self, module: Any) -> Signal:
        weight, bias = folded(module), module.bias
        stride, padding = module.stride[0], module.padding[0]
        if self._flat:
            return lambda signal: F.conv_transpose1d(signal, weight, bias, stride, padding)
        weight = self._image(weight)
        return lambda signal: F.conv_transpose2d(signal, weight, bias, (1, stride), (0, padding))

    def _image(self, weight: torch.Tensor) -> torch.Tensor:
        return weight[:, :, None].contiguous(memory_format=torch.channels_last)


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


_Kept = tuple[tuple[Any, ...], Signal]
_DECODERS: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def wave_decoder(vae: Any, policy: DevicePolicy, compiled: bool = False) -> Signal:
    """The quick decoder of a VAE, made on first use and again when its weights move.

    Args:
        vae: a `diffusers` `AutoencoderOobleck`.
        policy: its limit holds for every convolution, and it chooses the layout.
        compiled: let inductor fuse the activations, for any length at once.
    """
    bring(vae)
    signature = (
        compiled,
        policy.max_conv_output,
        policy.channels_last,
        *((p.data_ptr(), p._version) for p in vae.decoder.parameters()),
    )
    kept = _DECODERS.get(vae)
    if kept is None or kept[0] != signature:
        with torch.no_grad():
            made: Signal = WaveDecoder(
                vae.decoder, policy.max_conv_output, channels_last=policy.channels_last
            )
        if compiled:
            made = torch.compile(made, dynamic=True)
        _DECODERS[vae] = kept = (signature, made)
    return kept[1]


def forget(vae: nn.Module) -> None:
    """Drop what was made from a VAE's weights."""
    _DECODERS.pop(vae, None)
