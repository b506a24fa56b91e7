"""The VAE's encoder from quick layers, with the values of `vae.encoder` up to rounding."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from acestep.device import DevicePolicy
from acestep.engines.torch.offloading import bring
from acestep.engines.torch.wave_layers import Signal, WaveLayers, units_of


class WaveEncoder(WaveLayers):
    """Waveforms `[batch, 2, samples]` to `[batch, 2 * channels, frames]`, means above scales.

    Args:
        encoder: a `diffusers` `OobleckEncoder`, on its device; its weights are copied.
        limit: longest output of a convolution, or None.
        channels_last: see `WaveLayers`.
    """

    def __init__(
        self, encoder: Any, limit: int | None = None, *, channels_last: bool = True
    ) -> None:
        super().__init__(limit, channels_last)
        self._layers.append(self._convolution(encoder.conv1))
        for block in encoder.block:
            self._layers += [self._residual(unit) for unit in units_of(block)]
            self._layers += [self._snake(block.snake1), self._convolution(block.conv1)]
        self._layers += [self._snake(encoder.snake1), self._convolution(encoder.conv2)]


_ENCODERS: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Signal]] = WeakKeyDictionary()


def wave_encoder(vae: Any, policy: DevicePolicy) -> Signal:
    """The quick encoder of a VAE, made on first use and again when its weights move.

    Args:
        vae: a `diffusers` `AutoencoderOobleck`.
        policy: its limit holds for every convolution, and it chooses the layout.
    """
    bring(vae)
    weights = ((p.data_ptr(), p._version) for p in vae.encoder.parameters())
    signature = (policy.max_conv_output, policy.channels_last, *weights)
    kept = _ENCODERS.get(vae)
    if kept is None or kept[0] != signature:
        with torch.no_grad():
            made = WaveEncoder(
                vae.encoder, policy.max_conv_output, channels_last=policy.channels_last
            )
        _ENCODERS[vae] = kept = (signature, made)
    return kept[1]


def forget(vae: nn.Module) -> None:
    """Drop what was made from a VAE's weights."""
    _ENCODERS.pop(vae, None)
