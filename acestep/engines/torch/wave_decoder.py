"""The VAE's decoder from quick layers, with the values of `vae.decoder` up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from acestep.device import DevicePolicy
from acestep.engines.torch.offloading import bring
from acestep.engines.torch.wave_layers import Signal, WaveLayers, in_pieces, units_of
from acestep.vae.windows import PIECE_BYTES, halo_of, is_pieced

# Pieces of fewer samples would compute more than a quarter twice.
_FEWEST_HALOS = 8


class WaveDecoder(WaveLayers):
    """Latents to waveforms with the weights of a `diffusers` `OobleckDecoder`.

    Args:
        decoder: the module, on its device; its weights are copied.
        limit: longest output of a convolution, or None.
        channels_last: see `WaveLayers`.
        compiled: let inductor make one kernel of all that lies between two convolutions:
            biases, sums and activations.
        piece_bytes: size of a signal that the cache holds with what is made of it: longer ones go
            through each block in pieces. None for none.
    """

    def __init__(
        self,
        decoder: Any,
        limit: int | None = None,
        *,
        channels_last: bool = True,
        compiled: bool = False,
        piece_bytes: int | None = None,
    ) -> None:
        super().__init__(limit, channels_last)
        self._layers.append(self._convolution(decoder.conv1))
        if compiled:
            self._layers.append(self._fused(decoder))
            self._layers.append(self._convolution(decoder.conv2))
            return
        tail = [self._snake(decoder.snake1), self._convolution(decoder.conv2)]
        for block in decoder.block:
            widen = self._phased if piece_bytes else self._transposed
            layers = [self._snake(block.snake1), widen(block.conv_t1)]
            layers += [self._residual(unit) for unit in units_of(block)]
            parts = [block]
            if block is decoder.block[-1]:
                layers, parts = layers + tail, [block, decoder.conv2]
            if piece_bytes:
                halo = halo_of(nn.ModuleList(parts))
                layers = [_in_pieces(layers, block.conv_t1, halo, piece_bytes)]
            self._layers += layers

    def _fused(self, decoder: Any) -> Signal:
        """All blocks and the last activation, with nothing but kernels between convolutions."""
        activate, join = _compiled(_activated), _compiled(_joined)
        snakes = [snake for block in decoder.block for snake in _snakes(block)]
        rates = [self._rates(snake) for snake in [*snakes[1:], decoder.snake1]]
        opening = self._snake(snakes[0])
        stages: list[tuple[Signal, list[Any]]] = []
        for block in decoder.block:
            units = []
            for unit in units_of(block):
                convolutions = [
                    (self._convolution(part, biased=False), self._shaped(part.bias))
                    for part in (unit.conv1, unit.conv2)
                ]
                units.append((*convolutions, self._rates(unit.snake2)))
            stages.append((self._transposed(block.conv_t1, biased=False), units))
        biases = [self._shaped(block.conv_t1.bias) for block in decoder.block]
        nothing = torch.zeros_like(biases[0][:, :1])

        def run(signal: torch.Tensor) -> torch.Tensor:
            active, following = opening(signal), iter(rates)
            for (widen, units), bias in zip(stages, biases, strict=True):
                signal, active = join(widen(active), nothing, bias, *next(following))
                for (wide, wide_bias), (narrow, narrow_bias), inner in units:
                    branch = narrow(activate(wide(active), wide_bias, *inner))
                    signal, active = join(signal, branch, narrow_bias, *next(following))
            return active

        return run


def _in_pieces(layers: list[Signal], widen: Any, halo: int, size: int) -> Signal:
    """The layers of a block on pieces whose widest signal is of so many bytes, halos included."""
    ratio: int = widen.stride[0]
    each = widen.out_channels * ratio * widen.bias.element_size()
    core = max(size // each - 2 * halo, _FEWEST_HALOS * halo)
    return in_pieces(layers, core, halo, ratio)


def _snakes(block: Any) -> list[Any]:
    """The activations that follow a sum, in the order in which they run."""
    return [block.snake1, *(unit.snake1 for unit in units_of(block))]


def _activated(
    signal: torch.Tensor, bias: torch.Tensor, alpha: torch.Tensor, root: torch.Tensor
) -> torch.Tensor:
    signal = signal + bias
    return signal + ((signal * alpha).sin() * root).square()


def _joined(
    signal: torch.Tensor,
    branch: torch.Tensor,
    bias: torch.Tensor,
    alpha: torch.Tensor,
    root: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    signal = signal + branch + bias
    return signal, signal + ((signal * alpha).sin() * root).square()


@lru_cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    made: Callable[..., Any] = torch.compile(function, dynamic=True)
    return made


class _Recorded:
    """A decoder whose launches are recorded for one length, and again when another comes.

    A chunk is some forty kernels, most of which take less time than their launch.
    """

    def __init__(self, run: Signal, policy: DevicePolicy) -> None:
        self._run, self._policy = run, policy
        self._latents = self._wave = torch.empty(0)
        self._replay: Callable[[], None] | None = None

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """As the decoder; what an earlier call gave is overwritten."""
        if self._replay is None or latents.shape != self._latents.shape:
            self._replay, self._latents = None, latents.clone()
            self._replay = self._policy.captured(self._step)
        self._latents.copy_(latents)
        self._replay()
        return self._wave

    def _step(self) -> None:
        self._wave = self._run(self._latents)


_Kept = tuple[tuple[Any, ...], dict[str, Signal]]
_DECODERS: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def wave_decoder(
    vae: Any, policy: DevicePolicy, compiled: bool = False, even: bool = False
) -> Signal:
    """The quick decoder of a VAE, made on first use and again when its weights move.

    Args:
        vae: a `diffusers` `AutoencoderOobleck`.
        policy: its limit holds for every convolution, and it chooses the layout.
        compiled: fuse what lies between convolutions: by kernels of our own where the device
            runs them, else by inductor, for any length at once.
        even: signals of one length follow each other, for which it pays to try kernels and to
            record launches. A result is then overwritten by the next.
    """
    bring(vae)
    signature = (
        compiled,
        policy.max_conv_output,
        *((p.data_ptr(), p._version) for p in vae.decoder.parameters()),
    )
    kept = _DECODERS.get(vae)
    if kept is None or kept[0] != signature:
        _DECODERS[vae] = kept = (signature, {})
    made = kept[1]
    tiled = _tiled(vae, policy) if compiled else None
    name = "tiled" if tiled else "even" if even else "any"
    if name not in made:
        # What cuDNN takes without trying was far slower side by side; see `DevicePolicy`.
        layout = even or policy.channels_last
        pieced = is_pieced(vae.decoder, policy) and not compiled
        with torch.no_grad():
            made[name] = (
                tiled(vae.decoder)
                if tiled
                else WaveDecoder(
                    vae.decoder,
                    policy.max_conv_output,
                    channels_last=layout,
                    compiled=compiled,
                    piece_bytes=PIECE_BYTES if pieced else None,
                )
            )
    if not (even and policy.records):
        return made[name]
    if "recorded" not in made:
        made["recorded"] = _Recorded(made[name], policy)
    return made["recorded"]


def _tiled(vae: Any, policy: DevicePolicy) -> Callable[[Any], Signal] | None:
    """What makes a decoder of our own kernels, where device and widths allow it."""
    if not policy.has_tile_kernels(vae.dtype):
        return None
    from acestep.engines.torch._wave_kernels import TiledDecoder, fits

    return TiledDecoder if fits(vae.decoder) else None


def forget(vae: nn.Module) -> None:
    """Drop what was made from a VAE's weights."""
    _DECODERS.pop(vae, None)
